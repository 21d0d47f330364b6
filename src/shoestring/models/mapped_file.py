"""A file of weights mapped into memory: pages are read when they are touched and cost nothing until then.

Whoever reads a checkpoint takes every number in it for hostile until it has been held against the file.
"""

import mmap
import os
import reprlib
from pathlib import Path

from shoestring.errors import BadModelFile

HEADER_LIMIT_BYTES = 100_000_000
"""The longest description of tensors that is read: what the safetensors format itself allows."""
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80


def map_file(path: Path) -> mmap.mmap:
    """A private mapping: writing to it changes this process's copy of a page and never the file.

    The file must not be cut short by someone else while it is mapped (renaming another over it is safe).
    Raises: FileNotFoundError if there is no such file; BadModelFile if it is empty or no regular file.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    # Opening a pipe would wait for a writer for ever.
    if not path.is_file():
        raise BadModelFile(f"{path} is no regular file; give a file of weights")
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise BadModelFile(f"{path} is empty; copy it again")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def drop_pages(mapped: mmap.mmap, start: int, nbytes: int) -> None:
    """Let go of pages that were read and not written; they come back from the file when touched again."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    start -= start % mmap.PAGESIZE
    length = min(nbytes + mmap.PAGESIZE, len(mapped) - start)
    if length > 0:
        mapped.madvise(mmap.MADV_DONTNEED, start, length)


def shown(value: object) -> str:
    """A name or value out of a file as an error line may show it: quoted, escaped, cut where it is long."""
    return " ".join(_BRIEF.repr(value).split())
