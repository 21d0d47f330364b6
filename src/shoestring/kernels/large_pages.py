"""Memory that is read as a long stream, on large pages: fewer walks of page tables, and hardware prefetchers
that need not stop every 4 KiB."""

import mmap

import torch
from torch import Tensor

LARGE_PAGE_BYTES = 2 << 20


def on_large_pages(tensor: Tensor) -> Tensor:
    """A contiguous copy of a tensor on the processor that starts at a large page.

    The tensor itself, made contiguous, where it is smaller than a large page or the system knows none. The
    system is asked, not told: it may still give small pages.
    """
    data = tensor.contiguous()
    if data.device.type != "cpu" or data.nbytes < LARGE_PAGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return data
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # memory that is shared, the default, gets small pages
    room = mmap.mmap(-1, data.nbytes + LARGE_PAGE_BYTES, flags=private)
    try:
        room.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a system built without them
        return data
    whole = torch.frombuffer(room, dtype=torch.uint8)
    start = -whole.data_ptr() % LARGE_PAGE_BYTES
    copy = whole[start : start + data.nbytes].view(data.dtype).view(data.shape)
    return copy.copy_(data)
