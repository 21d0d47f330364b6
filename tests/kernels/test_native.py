import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from shoestring.errors import NoCompiler
from shoestring.kernels import native

SOURCE = "int twice(int x) { return 2 * x; }"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    native._load.cache_clear()
    yield
    native._load.cache_clear()


def test_compiles_once_and_loads_after(tmp_path):
    assert native.load_library(SOURCE).twice(21) == 42
    built = list(tmp_path.glob("kernels/*.so"))
    stamp = built[0].stat().st_mtime_ns
    native._load.cache_clear()
    assert native.load_library(SOURCE).twice(4) == 8
    assert [p.stat().st_mtime_ns for p in tmp_path.glob("kernels/*.so")] == [stamp]


def test_corrupt_entry_is_rebuilt(tmp_path, monkeypatch):
    program = f"from shoestring.kernels import native; print(native.load_library({SOURCE!r}).twice(3))"
    monkeypatch.setenv("PYTHONPATH", str(Path(native.__file__).parents[2]))
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "6"
    (entry,) = tmp_path.glob("kernels/*.so")
    entry.write_bytes(entry.read_bytes()[:100])
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "6"


def test_no_compiler_says_what_to_do(monkeypatch):
    monkeypatch.setenv("SHOESTRING_CC", "none")
    with pytest.raises(NoCompiler, match="install gcc or set CC"):
        native.load_library(SOURCE)


def test_rejected_source_shows_the_compilers_error():
    with pytest.raises(NoCompiler, match="error"):
        native.load_library("int twice(int x) { return y; }")


def test_flags_are_part_of_the_key():
    source = "int n(void) { return N; }"
    assert native.load_library(source, extra_flags=("-DN=1",)).n() == 1
    assert native.load_library(source, extra_flags=("-DN=2",)).n() == 2
    assert isinstance(native.load_library(source, extra_flags=("-DN=1",)), ctypes.CDLL)


def test_a_file_may_include_others_of_its_folder_and_changes_with_them(tmp_path):
    (tmp_path / "one.h").write_text("static int one(void) { return 1; }\n")
    (tmp_path / "two.h").write_text('#include "one.h"\nstatic int two(void) { return one() + one(); }\n')
    source = tmp_path / "three.c"
    source.write_text('#include "one.h"\n#include "two.h"\nint three(void) { return one() + two(); }\n')
    assert native.load_library(source).three() == 3
    (tmp_path / "one.h").write_text("static int one(void) { return 10; }\n")
    assert native.load_library(source).three() == 30
