"""Memory that is read as a long stream, on large pages: fewer walks of page tables, and hardware prefetchers
that need not stop every 4 KiB."""

import ctypes
import mmap
import threading

import torch
from torch import Tensor

LARGE_PAGE_BYTES = 2 << 20
SHARED_BYTES = 32 << 20
"""What small pieces are cut from together."""
LINE = 64


class _Mapping:
    """Memory of the process alone, from a large page on, of which pieces are cut from the front.

    Each piece keeps all of it, and is freed with the last one. Pages are there once they are written to.
    """

    def __init__(self, n_bytes: int) -> None:
        """Raises: OSError where the system knows no large pages."""
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            raise OSError("large pages cannot be asked for on this system")
        private = (
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )  # memory that is shared, the default, gets small pages
        self._room = mmap.mmap(-1, n_bytes + LARGE_PAGE_BYTES, flags=private)
        self._room.madvise(mmap.MADV_HUGEPAGE)
        self._at = -ctypes.addressof(ctypes.c_char.from_buffer(self._room)) % LARGE_PAGE_BYTES
        self._end = self._at + n_bytes

    def cut(self, n_bytes: int) -> Tensor | None:
        """The next bytes, from a cache line on; None where there are too few."""
        if n_bytes > self._end - self._at:
            return None
        piece = torch.frombuffer(self._room, dtype=torch.uint8, count=n_bytes, offset=self._at)
        self._at += -(-n_bytes // LINE) * LINE
        # As torch says of memory that no operation made: whoever counts memory counts it from here on.
        return torch.ops.aten.lift_fresh.default(piece)


_lock = threading.Lock()
_shared: list[_Mapping] = []
"""The newest that small pieces share."""


def room_on_large_pages(n_bytes: int) -> Tensor | None:
    """Uninitialised bytes that begin on a cache line, beside others that were asked for before.

    The matrices of a small model are smaller than a large page each; together they fill many. None where the
    system knows no large pages, or for no bytes. The system is asked, not told: it may still give small ones.
    """
    if not n_bytes:
        return None
    try:
        if n_bytes > SHARED_BYTES // 4:
            return _Mapping(n_bytes).cut(n_bytes)
        with _lock:
            piece = _shared[0].cut(n_bytes) if _shared else None
            if piece is None:
                _shared[:] = [_Mapping(SHARED_BYTES)]
                piece = _shared[0].cut(n_bytes)
            return piece
    except OSError:
        return None


def on_large_pages(tensor: Tensor) -> Tensor:
    """A contiguous copy of a tensor on the processor that starts at a large page.

    The tensor itself, made contiguous, where it is smaller than a large page or the system knows none.
    """
    data = tensor.contiguous()
    if data.device.type != "cpu" or data.nbytes < LARGE_PAGE_BYTES:
        return data
    try:
        room = _Mapping(data.nbytes).cut(data.nbytes)
    except OSError:
        return data
    assert room is not None
    return room.view(data.dtype).view(data.shape).copy_(data)
