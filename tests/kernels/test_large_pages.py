"""Copies on large pages hold the same numbers and outlive their origin."""

import gc
from pathlib import Path

import pytest
import torch

from shoestring.kernels.large_pages import LARGE_PAGE_BYTES, on_large_pages


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


def test_the_memory_is_private_since_shared_memory_gets_small_pages():
    copy = on_large_pages(torch.zeros(LARGE_PAGE_BYTES, dtype=torch.uint8))
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, *_ = line.split()
        start, end = (int(part, 16) for part in addresses.split("-"))
        if start <= copy.data_ptr() < end:
            assert rights == "rw-p"
            return
    raise AssertionError("the copy lies in no mapping")
