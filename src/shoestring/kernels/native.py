"""C sources become loaded libraries: compiled once by the system compiler, cached by what made them.

The cache key covers the source, the flags, the compiler's version and this processor's features, so one cache
folder may serve several machines. Entries are written beside and renamed, so concurrent processes and kills
are harmless; an entry that does not load is built again.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from shoestring.errors import NoCompiler
from shoestring.files import cache_folder

FLAGS = ("-O3", "-march=native", "-std=c11", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno")


def load_library(source: str | Path, *, extra_flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Compile a C file (or a source text) and load it; the second call, in any process, only loads.

    A file may include others of its folder by `#include "name"`: they become part of the text.
    `SHOESTRING_CC` names the compiler (default: `$CC`, then `cc`, `gcc`, `clang`); `SHOESTRING_CC=none`
    turns compilation off.

    Raises: NoCompiler when there is none or it rejects the source (the message carries its first error).
    """
    text = with_headers(source, set()) if isinstance(source, Path) else source
    return _load(text, FLAGS + extra_flags, compiler_path())


def with_headers(source: Path, seen: set[Path]) -> str:
    """A C file with the files that it includes by `#include "name"` in their places, each of them once.

    The text then says all that the library is made of, which is what the cache key is taken from.
    """
    lines = []
    for line in source.read_text(encoding="utf-8").splitlines(keepends=True):
        if found := re.match(r'\s*#include "([^"]+)"', line):
            header = (source.parent / found[1]).resolve()
            if header not in seen:
                seen.add(header)
                lines.append(with_headers(header, seen) + "\n")
        else:
            lines.append(line)
    return "".join(lines)


@functools.cache
def _load(text: str, flags: tuple[str, ...], compiler: str) -> ctypes.CDLL:
    identity = "\0".join((text, *flags, _compiler_version(compiler), processor_features()))
    library = cache_folder("kernels") / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.so"
    if library.exists():
        try:
            return ctypes.CDLL(str(library))
        except OSError:
            library.unlink(missing_ok=True)  # cut short or from another system: build it again
    try:
        _build(text, flags, compiler, library)
    except OSError as error:
        raise NoCompiler(f"a kernel could not be stored in {library.parent}: {error}") from error
    return ctypes.CDLL(str(library))


def _build(text: str, flags: tuple[str, ...], compiler: str, library: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="build.", dir=library.parent) as folder:
        source, output = Path(folder, "kernel.c"), Path(folder, "kernel.so")
        source.write_text(text, encoding="utf-8")
        command = [compiler, *flags, str(source), "-o", str(output), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise NoCompiler(f"{compiler} could not build a kernel: {first.strip()}")
        os.replace(output, library)


def compiler_path() -> str:
    """The C compiler that builds kernels. Raises: NoCompiler where there is none."""
    named = os.environ.get("SHOESTRING_CC") or os.environ.get("CC")
    for candidate in [named] if named else ["cc", "gcc", "clang"]:
        if found := shutil.which(candidate):
            return found
    raise NoCompiler(f"no C compiler found (looked for {named or 'cc, gcc, clang'}); install gcc or set CC")


@functools.cache
def _compiler_version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


@functools.cache
def processor_features() -> str:
    """The features that -march=native answers to."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line for line in file if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
