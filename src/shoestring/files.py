"""Files are written beside their place and then renamed: a reader sees the old one or the new one, whole."""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".tmp"
RENAME_EXCHANGE = 2
"""Flag of renameat2(2)."""


def cache_folder(*parts: str) -> Path:
    """The folder for things that can be made again: `$SHOESTRING_CACHE`, else `$XDG_CACHE_HOME/shoestring`.

    Falls back to `~/.cache/shoestring`. The folder is created.
    Raises: OSError naming the folder and the variable if it cannot be created.
    """
    base = os.environ.get("SHOESTRING_CACHE")
    if base is None:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "shoestring")
    folder = Path(base, *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"the cache folder {folder} cannot be made ({error.strerror}); set SHOESTRING_CACHE to another."
        ) from error
    return folder


def check_place(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether a file or folder can be put at `path`, by trying.

    Raises: OSError naming the folder that cannot be written, or the name that is too long. What had to be
    created for the trial is removed again.
    """
    path = Path(path).absolute()
    place = path.parent
    while not place.exists():
        place = place.parent
    try:
        trial = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=SUFFIX, dir=place)
    except OSError as error:
        raise type(error)(f"{path} cannot be written ({error.strerror}); choose another place.") from error
    os.rmdir(trial)


@contextmanager
def replacing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary sibling to write; on success it is flushed to disk and renamed to `path`.

    If the block raises (a full disk, an interrupt), the sibling is removed and `path` is as it was. A
    symbolic link stays one: what it points to is replaced. What killed runs left beside is removed first.

    Raises: FileExistsError if `path` is a folder, a device or a pipe.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is no regular file; name one that may be replaced.")
    remove_leftovers(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=SUFFIX, dir=path.parent)
    temporary = Path(name)
    try:
        _hold(handle)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` so that `path` holds either what it held before or all of `text`."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary sibling folder to fill; on success it takes the place of `path`.

    An existing folder at `path` changes places with it in one step and is removed last, so that at any
    moment, and after a kill, `path` is the old folder or the new one, whole. Where the system cannot swap
    it is moved aside first, and `recover_folder` finishes what a kill cut in two. A symbolic link
    stays one: what it points to is replaced. What killed runs left beside `path` is removed first.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    remove_leftovers(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=SUFFIX, dir=path.parent))
    handle = os.open(temporary, os.O_RDONLY)
    try:
        _hold(handle)
        yield temporary
        umask = _umask()
        temporary.chmod(0o777 & ~umask)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~umask)
            _flush(file)
        _flush(temporary)
        if not path.exists():
            os.replace(temporary, path)
        elif not _swap(temporary, path):
            retired = _retired(path)
            os.replace(path, retired)
            os.replace(temporary, path)
            shutil.rmtree(retired, ignore_errors=True)
        _flush(path.parent)
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(path: str | os.PathLike[str]) -> None:
    """Put back the old folder if a kill came between the two renames of `replacing_folder`."""
    path = Path(path).resolve()
    retired = _retired(path)
    if retired.exists():
        if path.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(retired, path)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary siblings of `path` whose writers are dead; those in use are left alone."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}{re.escape(SUFFIX)}")
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            if not ours.fullmatch(entry.name) or entry.is_symlink() or _is_held(entry.path):
                continue
            if entry.is_dir():
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _retired(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _hold(handle: int) -> None:
    """Mark a temporary as in use for as long as the handle is open; the system lets go if we are killed."""
    with contextlib.suppress(OSError):  # some network file systems have no locks: nothing is cleaned there
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(path: str) -> bool:
    """Whether a live process writes there, or that cannot be known."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


def _swap(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here = -100  # AT_FDCWD
    if rename(here, os.fsencode(one), here, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
