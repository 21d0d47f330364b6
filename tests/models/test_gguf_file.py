import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from shoestring.errors import BadModelFile
from shoestring.models import gguf_file
from shoestring.models.gguf_file import BLOCKS, PLAIN, GGUFFile

from .gguf_bytes import ARRAY, BOOL, F32, STRING, U32, Gguf, Stored, every_kind, tensor


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


def opened(path, content):
    path.write_bytes(bytes(content.write().data) if isinstance(content, Gguf) else content)
    return GGUFFile(path)


def refusal(path, content):
    with pytest.raises(BadModelFile) as caught:
        opened(path, content)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


SMALL = Gguf(
    (("a", U32, 7), ("b", STRING, "text")),
    (tensor("x", np.arange(8.0).reshape(2, 4)), tensor("y", np.ones(3))),
)


@pytest.mark.parametrize("version", [2, 3])
def test_reads_metadata_and_tensors(version, path):
    file = opened(path, SMALL.but(version=version))
    assert (file.version, file.metadata) == (version, {"a": 7, "b": "text"})
    assert list(file) == ["x", "y"]
    assert file["x"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert file.read("x", torch.float64).dtype is torch.float64


def test_every_type_decodes_as_the_library_does(path, monkeypatch):
    monkeypatch.setattr(gguf_file, "_CHUNK_ELEMENTS", 1)  # so that each block is a chunk of its own
    content = every_kind([*PLAIN, *sorted(BLOCKS)])
    file = opened(path, content)
    for stored in content.tensors:
        kind = Kind(stored.kind)
        rows = np.frombuffer(stored.data, np.uint8).reshape(2, -1)
        if kind in PLAIN:
            expected = torch.from_numpy(rows.copy()).view(PLAIN[kind])
        else:
            with np.errstate(all="ignore"):
                expected = torch.from_numpy(gguf.dequantize(rows, kind))
        found = file[stored.name]
        assert (file.blocks(stored.name) == rows).all()
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8)), kind.name


def test_reads_what_the_library_writes(path):
    writer = gguf.GGUFWriter(path, "llama")
    random = np.random.default_rng(0)
    weight = random.standard_normal((6, 64)).astype(np.float32)
    packed = gguf.quants.quantize(weight, Kind.Q8_0)
    writer.add_tensor("w", packed, raw_dtype=Kind.Q8_0)
    writer.add_tensor("v", weight)
    writer.add_array("names", ["a", "é", ""])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_bool("flag", True)
    writer.add_custom_alignment(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(path)
    assert file.metadata["names"] == ["a", "é", ""]
    assert file.metadata["numbers"].tolist() == [1, 2, 3]
    assert file.metadata["flag"] is True
    assert file["v"].tolist() == weight.tolist()
    assert torch.equal(file["w"], torch.from_numpy(gguf.dequantize(packed, Kind.Q8_0)))
    assert (file.blocks("w") == packed).all()


def test_tensors_are_copies_of_their_own(path):
    file = opened(path, SMALL)
    file["x"][0, 0] = 9.0
    assert file["x"][0, 0] == 0.0


def header(version=3, tensors=0, pairs=0, rest=b""):
    return (
        b"GGUF"
        + version.to_bytes(4, "little")
        + tensors.to_bytes(8, "little")
        + pairs.to_bytes(8, "little")
        + rest
    )


def moved(**changes):
    first = SMALL.tensors[0]
    return SMALL.but(tensors=(Stored(**(vars(first) | changes)), SMALL.tensors[1]))


Q4 = Stored("q", (48, 1), int(Kind.Q4_0), bytes(36))
HOSTILE = {
    "another format": (b"PK\x03\x04" * 9, "no GGUF file"),
    "three bytes": (b"GGU", "ends within the header"),
    "no version": (header(version=0), "version 0"),
    "the old version": (header(version=1), "version 1"),
    "a later version": (header(version=9), "version 9"),
    "the other byte order": (header(version=3 << 24), "big-endian"),
    "a giant count of tensors": (header(tensors=2**63), "claims 9223372036854775808 tensors"),
    "a giant count of pairs": (header(pairs=2**64 - 1), "key/value pairs, more than fit"),
    "a giant name": (header(pairs=1, rest=b"\xff" * 8 + bytes(40)), "ends within a key"),
    "a giant text": (
        header(pairs=1, rest=b"\1" + bytes(7) + b"k" + b"\x08\0\0\0" + b"\xff" * 8),
        "ends within 'k'",
    ),
    "a giant array": (
        header(pairs=1, rest=b"\1" + bytes(7) + b"k\x09\0\0\0\x04\0\0\0" + b"\xff" * 8),
        "elements of 'k'",
    ),
    "a giant array of texts": (
        header(pairs=1, rest=b"\1" + bytes(7) + b"k\x09\0\0\0\x08\0\0\0" + b"\xff" * 8),
        "elements",
    ),
    "a name of no characters": (Gguf((("", U32, 1),)), "instead of 1 to 65535"),
    "a name of no UTF-8": (Gguf(((b"\xff", U32, 1),)), "no valid UTF-8"),
    "a key twice": (Gguf((("a", U32, 1), ("a", U32, 1))), "'a' is there twice"),
    "a tensor twice": (SMALL.but(tensors=SMALL.tensors[:1] * 2), "'x' is there twice"),
    "an unknown value": (
        header(pairs=1, rest=b"\1" + bytes(7) + b"k" + b"\x63\0\0\0" + bytes(8)),
        "unknown type 99",
    ),
    "arrays in arrays in arrays": (
        Gguf((("a", ARRAY, (ARRAY, [(ARRAY, [(ARRAY, [(ARRAY, [(U32, [1])])])])])),)),
        "nested more than 4",
    ),
    "a third truth": (header(pairs=1, rest=b"\1" + bytes(7) + b"k" + b"\x07\0\0\0\x02"), "truth values"),
    "an alignment of 0": (SMALL.with_pair("general.alignment", U32, 0), "power of two"),
    "an alignment of 24": (SMALL.with_pair("general.alignment", U32, 24), "power of two"),
    "an alignment that is a text": (SMALL.with_pair("general.alignment", STRING, "32"), "power of two"),
    "an alignment of truth": (SMALL.with_pair("general.alignment", BOOL, True), "power of two"),
    "a giant alignment": (SMALL.with_pair("general.alignment", U32, 2**31), "no multiple of the alignment"),
    "no dimension": (moved(dims=()), "0 dimensions"),
    "five dimensions": (moved(dims=(4, 2, 1, 1, 1)), "5 dimensions"),
    "a dimension of 0": (moved(dims=(0, 2)), "has the sizes"),
    "a product that wraps": (moved(dims=(2**62, 4)), "ends at"),
    "an unknown type": (moved(kind=99), "type 99"),
    "a type without a decoder": (moved(kind=int(Kind.Q8_K), dims=(256,)), "cannot be decoded"),
    "half a block": (SMALL.but(tensors=(Q4,)), "rows of a multiple of 32"),
    "an odd place": (moved(offset=4), "no multiple of the alignment 32"),
    "a place outside": (moved(offset=2**40), "ends at"),
    "an overlap": (
        SMALL.but(tensors=(SMALL.tensors[0], Stored("z", (4,), 0, bytes(16), 0))),
        "'x' and 'z' overlap",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refusals(name, path):
    content, reason = HOSTILE[name]
    assert reason in refusal(path, content)


def test_every_truncation_is_refused(path):
    data = bytes(SMALL.write().data)
    end = data.rfind(np.float32(1).tobytes()) + 4  # the padding behind the last tensor may be missing
    for length in range(1, end):
        refusal(path, data[:length])
    assert opened(path, data[:end])["y"].tolist() == [1, 1, 1]


def test_a_description_longer_than_any(path, monkeypatch):
    monkeypatch.setattr(gguf_file, "HEADER_LIMIT_BYTES", 50)
    assert "its description exceeds 50 bytes" in refusal(path, SMALL)


def test_a_value_of_many_lines_is_shown_in_one(path):
    content = SMALL.with_pair("general.alignment", ARRAY, (F32, [1.5] * 300))
    assert len(refusal(path, content)) < 400
