"""Sums of attention by column, and attention among some tokens, beside their definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import NoCompiler
from shoestring.layers.column_sums import column_sums, naive_column_sums
from shoestring.layers.gathered_attention import gathered_attention, naive_gathered_attention
from shoestring.notices import record_fallbacks


def drawn(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes
    ]


def gradients(result, inputs):
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(result.shape, generator=generator, dtype=result.dtype)
    return torch.autograd.grad((result * weight).sum(), inputs, allow_unused=True)


shapes = {
    "batch": st.integers(1, 2), "kv": st.integers(1, 3), "group": st.integers(1, 3), "n": st.integers(1, 23),
    "dim": st.sampled_from([1, 3, 8]), "window": st.sampled_from([None, 1, 4]), "seed": st.integers(0, 99),
}  # fmt: skip


@given(**shapes, m=st.integers(1, 9), block=st.sampled_from([1, 50, 1 << 20]))
def test_column_sums_are_those_of_attend(batch, kv, group, n, dim, window, seed, m, block):
    from shoestring.layers import column_sums as module

    q, k = drawn(seed, (batch, kv * group, m, dim), (batch, kv, n, dim))
    generator = torch.Generator().manual_seed(seed)
    pos_k = torch.arange(n).expand(batch, -1)
    pos_q = torch.randint(n, (batch, m), generator=generator).sort(1).values
    was, module.BLOCK_SCORES = module.BLOCK_SCORES, block
    try:
        sums, counts = column_sums(q, k, pos_q, pos_k, 0.3, window)
    finally:
        module.BLOCK_SCORES = was
    expected, expected_counts = naive_column_sums(q, k, pos_q, pos_k, 0.3, window)
    torch.testing.assert_close(sums, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(counts, expected_counts)
    for mine, theirs in zip(gradients(sums, (q, k)), gradients(expected, (q, k)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


@given(**shapes, m=st.integers(1, 9))
def test_both_paths_give_the_same_sums(batch, kv, group, n, dim, window, seed, m):
    """float32 without a gradient runs compiled, and with one in torch."""
    q, k = (x.detach().float() for x in drawn(seed, (batch, kv * group, m, dim), (batch, kv, n, dim)))
    pos_q = torch.randint(n, (batch, m), generator=torch.Generator().manual_seed(seed))
    pos_k = torch.arange(n).expand(batch, -1)
    sums, counts = column_sums(q, k, pos_q, pos_k, 0.3, window)
    again, counts_again = column_sums(q.requires_grad_(), k, pos_q, pos_k, 0.3, window)
    assert again.requires_grad
    torch.testing.assert_close(sums, again.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(counts, counts_again)


def test_without_a_compiler_torch_answers(monkeypatch):
    from shoestring.layers import column_sums as module

    q, k, pos = torch.randn(1, 4, 6, 3), torch.randn(1, 2, 6, 3), torch.arange(6)[None]
    expected, _ = column_sums(q, k, pos, pos, 0.3)

    def none(*_):
        raise NoCompiler("no C compiler found")

    monkeypatch.setattr(module, "compiled_column_sums", none)
    with record_fallbacks() as fallbacks:
        found, _ = column_sums(q, k, pos, pos, 0.3)
    torch.testing.assert_close(found, expected)
    assert "no C compiler found" in fallbacks[0]


def test_uniform_attention_in_closed_form():
    n = 40
    pos = torch.arange(n)[None]
    sums, counts = column_sums(torch.ones(1, 3, n, 4), torch.zeros(1, 1, n, 4), pos, pos, 1.0)
    expected = [sum(1 / (i + 1) for i in range(j, n)) for j in range(n)]
    torch.testing.assert_close(sums[0, 0] / 3, torch.tensor(expected), rtol=1e-5, atol=0)
    assert counts[0].tolist() == [n - j for j in range(n)]


@given(**{k: v for k, v in shapes.items() if k != "batch"}, per_head=st.booleans(), gap=st.integers(1, 3))
def test_gathered_attention_is_dense_attention_without_the_other_columns(
    kv, group, n, dim, window, seed, per_head, gap
):
    q, k, v = drawn(seed, (1, kv * group, n, dim), (1, kv, n, dim), (1, kv, n, dim))
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(kv if per_head else 1, n, generator=generator) < 0.6
    kept[:, -1] = True
    pos = torch.arange(n)[None] * gap
    out = gathered_attention(q, k, v, kept, pos, 0.3, window)
    expected = naive_gathered_attention(q, k, v, kept, pos, 0.3, window)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)
    outside = ~kept.expand(kv, -1).repeat_interleave(group, 0)
    assert bool((out[0][outside] == 0).all())
    inputs = (q, k, v)
    for mine, theirs in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(1, 3, 2, 4)}, "3 query heads are no multiple of 2"),
        ({"window": 0}, "window=0"),
        ({"pos_q": torch.tensor([[0, -1]])}, "a row sees no key"),
    ],
)
def test_what_has_no_sums_is_refused(change, message):
    inputs = {
        "q": torch.ones(1, 4, 2, 4), "k": torch.ones(1, 2, 5, 4), "pos_q": torch.tensor([[3, 4]]),
        "pos_k": torch.arange(5)[None], "scale": 1 / math.sqrt(4), **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        column_sums(**inputs)


def test_marks_for_another_number_of_heads_are_refused():
    x = torch.ones(1, 3, 5, 4)
    with pytest.raises(ValueError, match="kept has 2 rows; give 1, or one for each of 3"):
        gathered_attention(x, x, x, torch.ones(2, 5, dtype=torch.bool), torch.arange(5)[None], 1.0)
