"""Copies on large pages hold the same numbers and outlive their origin."""

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from shoestring.kernels import large_pages
from shoestring.kernels.large_pages import (
    LARGE_PAGE_BYTES,
    SHARED_BYTES,
    on_large_pages,
    room_on_large_pages,
)
from shoestring.yardstick.memory import LiveMemory


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_a_large_copy_is_equal_aligned_and_its_own(dtype):
    shape = (3, 5, LARGE_PAGE_BYTES // 8)
    tensor = torch.randint(0, 200, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    copy = on_large_pages(tensor.transpose(0, 1))
    assert copy.dtype == dtype
    assert torch.equal(copy, tensor.transpose(0, 1))
    assert copy.is_contiguous()
    assert copy.data_ptr() % LARGE_PAGE_BYTES == 0
    assert copy.data_ptr() != tensor.data_ptr()
    first = copy[0].clone()
    expected, view = first.clone(), copy[0]
    del copy, tensor
    gc.collect()
    assert torch.equal(view, expected), "a view keeps the memory"


def test_a_small_tensor_stays_where_it_is():
    small = torch.arange(10.0)
    assert on_large_pages(small) is small
    assert torch.equal(on_large_pages(small.reshape(2, 5).T), small.reshape(2, 5).T)


def mapping_of(address):
    """The line of /proc/self/maps with this address, or None."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line
    return None


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(large_pages, "_shared", [])


def test_small_pieces_lie_side_by_side_and_are_counted_alone(fresh):
    pieces = [room_on_large_pages(n) for n in (100, 64, 1, 5000)]
    for number, piece in enumerate(pieces):
        piece.fill_(number)
    starts = [piece.data_ptr() for piece in pieces]
    assert starts[0] % LARGE_PAGE_BYTES == 0
    assert [start - starts[0] for start in starts] == [0, 128, 192, 256]
    for number, piece in enumerate(pieces):
        assert torch.equal(piece, torch.full_like(piece, number))
        assert piece.untyped_storage().nbytes() == len(piece)


def test_a_counter_of_memory_sees_a_piece_come_and_go(fresh):
    with LiveMemory() as memory:
        piece = room_on_large_pages(1000)
        assert (memory.live_bytes, memory.dynamic_bytes) == (1000, 1000)
        del piece
        gc.collect()
        assert memory.live_bytes == 0


def test_what_is_shared_is_freed_with_the_last_piece(fresh):
    first, second = (room_on_large_pages(SHARED_BYTES // 8) for _ in range(2))
    address = first.data_ptr()
    for _ in range(8):  # on to the next mapping
        room_on_large_pages(SHARED_BYTES // 8)
    del first
    gc.collect()
    second.fill_(7)
    assert mapping_of(address)
    assert (second == 7).all()
    del second
    gc.collect()
    assert mapping_of(address) is None


def test_a_large_piece_has_a_mapping_of_its_own(fresh):
    large = room_on_large_pages(SHARED_BYTES)
    assert large.data_ptr() % LARGE_PAGE_BYTES == 0
    assert len(large) == SHARED_BYTES
    assert not large_pages._shared


def test_threads_get_pieces_of_their_own(fresh):
    with ThreadPoolExecutor(4) as pool:
        pieces = list(pool.map(lambda n: room_on_large_pages(n).fill_(n % 251), range(1, 400)))
    for n, piece in enumerate(pieces, 1):
        assert torch.equal(piece, torch.full((n,), n % 251, dtype=torch.uint8))


def test_without_large_pages_there_is_none(fresh, monkeypatch):
    monkeypatch.delattr(large_pages.mmap, "MADV_HUGEPAGE")
    assert room_on_large_pages(100) is None
    tensor = torch.zeros(LARGE_PAGE_BYTES, dtype=torch.uint8)
    assert on_large_pages(tensor) is tensor
    assert room_on_large_pages(0) is None


def test_the_memory_is_private_since_shared_memory_gets_small_pages():
    copy = on_large_pages(torch.zeros(LARGE_PAGE_BYTES, dtype=torch.uint8))
    assert mapping_of(copy.data_ptr()).split()[1] == "rw-p"
