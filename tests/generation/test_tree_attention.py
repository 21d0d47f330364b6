"""Hybrid tree attention against one masked attention over all keys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.generation.speculation.tree_attention import naive_tree_attend, tree_attend
from shoestring.layers.attention import attend
from shoestring.layers.attention_masks import Explicit, Full, KVView

from .speculation_inputs import random_tree


def inputs(text, nodes, new, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    tree = random_tree(nodes, 50, generator)
    q, k, v = (
        torch.randn(1, heads, n, 8, generator=generator, dtype=dtype)
        for heads, n in ((6, new), (2, text + nodes), (2, text + nodes))
    )
    depth = torch.tensor([tree.depths()])
    pos = torch.cat([torch.arange(text)[None], text + depth], 1)
    return q, KVView(k, v, pos[:, None]), pos[:, -new:], tree.ancestors()[-new:]


@pytest.mark.parametrize("window", [None, 5, 40])
@given(text=st.integers(0, 37), nodes=st.integers(1, 13), seed=st.integers(0, 10**6), data=st.data())
def test_the_parts_merged_are_the_whole(window, text, nodes, seed, data):
    q, view, pos, among = inputs(text, nodes, data.draw(st.integers(1, nodes)), seed)
    found = tree_attend(q, view, pos, among, 0.3, window)
    # A window narrower than the tree would cut into it, which verification never asks for.
    if window is not None and nodes >= window:
        return
    torch.testing.assert_close(found, naive_tree_attend(q, view, pos, among, 0.3, window), rtol=0, atol=1e-9)


def test_in_float32_too():
    q, view, pos, among = inputs(300, 17, 17, 3, torch.float32)
    expected = naive_tree_attend(q, view, pos, among, 0.3)
    torch.testing.assert_close(tree_attend(q, view, pos, among, 0.3), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask", [Full(), Explicit(torch.ones(1, 1, 4, 9).tril(5).bool())])
def test_the_log_sum_is_that_of_the_blockwise_path(mask):
    q, view, _, _ = inputs(5, 4, 4, 1)
    fast, slow = (attend(q, view, mask, 0.3, need=need) for need in (("lse",), ("lse", "rowmax")))
    torch.testing.assert_close(fast.out, slow.out, rtol=0, atol=1e-12)
    torch.testing.assert_close(fast.lse, slow.lse, rtol=0, atol=1e-12)
