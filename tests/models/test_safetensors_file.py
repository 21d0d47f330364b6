import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as library_save

from shoestring.errors import BadModelFile
from shoestring.models.safetensors_file import (
    DTYPES,
    SafetensorsFile,
    ShardedSafetensors,
    open_safetensors,
)


def packed(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(BadModelFile) as caught:
        SafetensorsFile(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).tolist()


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    types=st.lists(st.sampled_from(sorted(DTYPES)), min_size=4, max_size=4),
)
def test_gives_what_the_library_wrote(shapes, types, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i, (shape, kind) in enumerate(zip(shapes, types, strict=False)):
        nbytes = torch.Size(shape).numel() * DTYPES[kind].itemsize
        raw = torch.randint(0, 2, (nbytes,), dtype=torch.uint8, generator=generator)
        tensors[f"t{i}"] = raw.view(DTYPES[kind]).reshape(shape)
    path.write_bytes(library_save(tensors, metadata={"a": "b"}))
    file = SafetensorsFile(path)
    assert file.metadata == {"a": "b"}
    assert set(file) == set(tensors)
    for name, tensor in tensors.items():
        assert (file.shape(name), file.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
        assert file[name].shape == tensor.shape
        assert bits(file[name]) == bits(tensor)


def test_tensors_are_views_that_never_change_the_file(path):
    data = library_save({"a": torch.arange(4.0)})
    path.write_bytes(data)
    file = SafetensorsFile(path)
    view = file["a"]
    view[0] = 9.0
    assert file["a"][0] == 9.0
    assert file.read("a", torch.float64).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert file["a"][0] == 9.0
    assert path.read_bytes() == data


def test_a_tensor_at_an_odd_address(path):
    path.write_bytes(
        packed({"x": entry("U8", (1,), (0, 1)), "y": entry("F32", (1,), (1, 5))}, b"\x07" + b"\0\0\x80?")
    )
    assert SafetensorsFile(path)["y"].tolist() == [1.0]


HOSTILE = {
    "no length": (b"\x01\x02", "too few"),
    "a huge header": (packed(b"{}", length=2**63), "header of 9223372036854775808 bytes"),
    "a header beyond the end": (packed(b"{}", length=40), "copy it again"),
    "no JSON": (packed(b"{"), "no valid JSON"),
    "no UTF-8": (packed(b'{"\xff": 1}'), "no valid JSON"),
    "deep nesting": (packed(b"[" * 100_000), "no valid JSON"),
    "a number of 5000 digits": (packed(b'{"a":' + b"9" * 5000 + b"}"), "no valid JSON"),
    "no object": (packed([]), "a list instead of an object"),
    "a name twice": (packed(b'{"a": {}, "a": {}}'), "'a' is there twice"),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}}), "__metadata__"),
    "no shape": (
        packed({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
        "dtype, shape and data_offsets",
    ),
    "an unknown type": (packed({"a": entry("F4")}, bytes(8)), "the type 'F4'"),
    "a type that is no text": (packed({"a": entry(["F32"])}, bytes(8)), "the type"),
    "a negative size": (packed({"a": entry(shape=(-2, -1))}, bytes(8)), "instead of a list of sizes"),
    "a truth value as size": (packed({"a": entry("U8", (True,), (0, 1))}, bytes(1)), "list of sizes"),
    "a fraction as size": (packed({"a": entry(shape=(2.0,))}, bytes(8)), "list of sizes"),
    "a product that wraps to 8": (packed({"a": entry(shape=(2**62 + 1, 2))}, bytes(8)), "too large"),
    "an empty giant": (packed({"a": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}), "too large"),
    "too few bytes": (packed({"a": entry(shape=(3,))}, bytes(8)), "takes 12 bytes but is given 8"),
    "reversed offsets": (packed({"a": entry(offsets=(8, 0))}, bytes(8)), "data_offsets"),
    "an end outside": (packed({"a": entry()}, bytes(7)), "ends at"),
    "an overlap": (packed({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "overlaps"),
    "a gap": (packed({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "gap"),
    "a gap in front": (packed({"a": entry(offsets=(4, 12))}, bytes(12)), "gap"),
    "bytes after the end": (packed({"a": entry()}, bytes(9)), "1 bytes after its last tensor"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refusals(name, path):
    data, reason = HOSTILE[name]
    assert reason in refusal(path, data)


def test_an_empty_file(path):
    assert "is empty" in refusal(path, b"")


def test_truth_values(path):
    path.write_bytes(packed({"a": entry("BOOL", (2,), (0, 2))}, b"\x01\x02"))
    with pytest.raises(BadModelFile, match="truth values"):
        SafetensorsFile(path)["a"]


def test_a_pipe_is_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(BadModelFile, match="no regular file"):
        SafetensorsFile(path)


def test_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        SafetensorsFile(path)


def test_names_in_errors_are_short_and_in_one_line(path):
    message = refusal(path, packed({"a\n" * 1000: entry("F4")}, bytes(8)))
    assert len(message) < 500


@pytest.fixture
def sharded(tmp_path):
    """Two files and their index, and a function that writes the index anew."""
    (tmp_path / "one.safetensors").write_bytes(library_save({"a": torch.ones(2)}))
    (tmp_path / "two.safetensors").write_bytes(library_save({"b": torch.zeros(3), "c": torch.ones(1)}))
    index = tmp_path / "model.safetensors.index.json"

    def write(**changes):
        places = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"} | changes
        index.write_text(json.dumps({"weight_map": {k: v for k, v in places.items() if v is not None}}))
        return index

    return write


def test_shards(sharded):
    index = sharded()
    files = open_safetensors(index.parent)
    assert sorted(files) == ["a", "b", "c"]
    assert files["b"].tolist() == [0.0] * 3
    assert files.shape("c") == (1,)
    assert files.read("a", torch.float64).dtype is torch.float64


@pytest.mark.parametrize(
    "place",
    [
        "../one.safetensors",
        "/tmp/one.safetensors",
        "a/../../one.safetensors",
        "one.bin",
        "o\0ne.safetensors",
        "..\\one.safetensors",
        "",
    ],
)
def test_shards_stay_in_the_folder(place, sharded):
    with pytest.raises(BadModelFile, match="not a .safetensors file in the same folder"):
        ShardedSafetensors(sharded(a=place))


def test_a_missing_shard(sharded):
    with pytest.raises(BadModelFile, match=r"three\.safetensors is missing"):
        ShardedSafetensors(sharded(a="three.safetensors"))


def test_a_tensor_elsewhere(sharded):
    with pytest.raises(BadModelFile, match="'a' is not in two"):
        ShardedSafetensors(sharded(a="two.safetensors"))


def test_a_tensor_that_the_index_does_not_know(sharded):
    with pytest.raises(BadModelFile, match="'c' is in two"):
        ShardedSafetensors(sharded(c=None))


def test_an_index_without_a_map(sharded):
    index = sharded()
    for text in ("{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        with pytest.raises(BadModelFile, match="weight_map"):
            ShardedSafetensors(index)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither"):
        open_safetensors(tmp_path)
