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


def test_a_change_in_a_header_is_seen(tmp_path):
    (tmp_path / "size.h").write_text("#define SIZE 3\n")
    (tmp_path / "both.h").write_text('#include "size.h"\n')
    source = tmp_path / "kernel.c"
    source.write_text(
        '#include <stdint.h>\n#include "size.h"\n#include "both.h"\nint size(void) { return SIZE; }'
    )
    assert native.load_library(source).size() == 3
    (tmp_path / "size.h").write_text("#define SIZE 5\n")
    assert native.load_library(source).size() == 5
    (tmp_path / "size.h").unlink()
    with pytest.raises(NoCompiler, match=r"size\.h"):
        native.load_library(source)
