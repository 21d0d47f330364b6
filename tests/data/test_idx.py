import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.idx import parse_idx, read_idx


def encode(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_what_was_written_is_read(shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    read = parse_idx(encode(array), "x")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


@given(missing=st.integers(1, 27))
def test_a_truncated_array_is_refused_wherever_it_is_cut(missing):
    content = encode(np.arange(12, dtype=np.uint8).reshape(3, 4))[:-missing]
    with pytest.raises(ValueError, match="x: (truncated|not an IDX file)"):
        parse_idx(content, "x")


def test_gzip_and_plain_files_read_alike(tmp_path):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    (tmp_path / "plain").write_bytes(encode(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(encode(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "plain"), array)
    np.testing.assert_array_equal(read_idx(tmp_path / "packed.gz"), array)


def test_a_truncated_gzip_file_is_refused_by_name(tmp_path):
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(encode(np.zeros(1000, np.uint8)))[:-9])
    with pytest.raises(ValueError, match="cut.gz: truncated or damaged gzip"):
        read_idx(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x89PNG\r\n", "not an IDX file; it begins with 89504e47"),
        (b"\0\0\x0d\1\0\0\0\0", "type 0x0d"),
        (b"\0\0\x08\3\0\0", "truncated inside its header"),
        (encode(np.zeros(3, np.uint8)) + b"\0", "3 bytes, 4 follow"),
    ],
)
def test_other_files_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        parse_idx(content, "x")
