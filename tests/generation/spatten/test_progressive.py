"""The two passes against one query at a time, schedules and token scores."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoestring.generation.spatten import (
    KeepSchedule,
    ProgressiveAttention,
    TokenScores,
    count_schedule,
    gpt2_medium_heads,
    gpt2_medium_tokens,
    linear_schedule,
    naive_progressive_attention,
    share_schedule,
)
from shoestring.generation.spatten.progressive import progressive_attention


@dataclass
class Source:
    coarse: Tensor
    fine: Tensor
    v: Tensor

    def coarse_keys(self, *, mid=False):
        return self.coarse

    def keys(self):
        return self.fine

    def values(self):
        return self.v


@given(
    slots=st.integers(1, 13), group=st.integers(1, 3), kv_heads=st.integers(1, 2),
    dim=st.sampled_from([1, 3, 8]),
    theta=st.sampled_from([0.0, 0.3, 0.6, 1.0]), v_keep=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
    renorm=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_two_passes_are_those_of_each_query(slots, group, kv_heads, dim, theta, v_keep, renorm, seed):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, fine, v = (
        noise(1, kv_heads * group, 1, dim),
        noise(1, kv_heads, slots, dim),
        noise(1, kv_heads, slots, dim),
    )
    source = Source(fine.round(), fine, v)
    how = ProgressiveAttention(theta=theta, v_keep=v_keep, renorm=renorm)
    seen = torch.ones(1, 1, 1, slots, dtype=torch.bool)
    found = progressive_attention(q, source, seen, dim**-0.5, how, 0)
    for head in range(kv_heads * group):
        kv = head // group
        out, asked = naive_progressive_attention(
            q[0, head, 0], source.coarse[0, kv], fine[0, kv], v[0, kv], dim**-0.5, how
        )
        torch.testing.assert_close(found.out[0, kv, head % group, 0], out, rtol=0, atol=1e-9)
        assert bool(found.refetch[0, kv, head % group, 0]) == asked


def test_queries_may_be_rounded():
    q, keys = torch.tensor([[[[1.0, 0.3]]]]), torch.eye(2)[None, None]
    seen = torch.ones(1, 1, 1, 2, dtype=torch.bool)
    how = ProgressiveAttention(0.0, 1.0, query_bits=2)
    found = progressive_attention(q, Source(keys, keys, keys), seen, 1.0, how, 0)
    expected = torch.tensor([1.0, 0.0]).softmax(0)
    torch.testing.assert_close(found.p[0, 0, 0, 0], expected)


def test_schedules():
    assert linear_schedule(4, 100, 0.5, unpruned=2).counts == (100, 100, 83, 66)
    # All in layers 0 to 5, half after the last of 30 layers.
    counts = linear_schedule(30, 1024, 0.5, unpruned=6).counts
    assert counts[:6] == (1024,) * 6
    assert (counts[6], counts[29]) == (int(1024 * 0.98), int(1024 * 0.52))
    tokens, heads = gpt2_medium_tokens(), gpt2_medium_heads()
    assert len(tokens.counts) == len(heads.counts) == 24
    kept = sum(t * h for t, h in zip(tokens.counts, heads.counts, strict=True)) / (24 * 16 * 1024)
    assert kept == pytest.approx(0.477, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: count_schedule([3, 0]), "layer 1 is to keep 0 tokens"),
        (lambda: KeepSchedule((3, 2, 4), "heads"), "layer 2 is to keep 4 heads, but the layer before 2"),
        (lambda: share_schedule([1.0, 1.5], 10), "layer 1 keeps is 1.5"),
        (lambda: share_schedule([0.0], 10), "layer 0 keeps is 0.0"),
        (lambda: count_schedule([3, 2]).check_layers(3), "of 2 layers, the model has 3"),
        (lambda: linear_schedule(3, 10, 0.5, unpruned=4), "unpruned=4"),
        (lambda: TokenScores(1, 0.0), "gamma=0.0"),
    ],
)
def test_schedules_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_token_scores_add_up_and_forget():
    scores = TokenScores(1, gamma=0.5)
    scores.grow(4)
    scores.add(torch.tensor([[1.0, 2, 4]]), torch.tensor([[0, 1, 3]]))
    scores.add(torch.tensor([[1.0, 7, 9]]), torch.tensor([[0, 3, -1]]))
    assert scores.sums.tolist() == [[1.5, 2, 0, 9]]
    assert scores.ranking(torch.tensor([4]), normalised=True).tolist() == [[0.375, 2 / 3, 0, 9]]
    scores.forget(torch.tensor([[3, -1]]))
    assert scores.sums.tolist() == [[1.5, 2, 0, 0]]
