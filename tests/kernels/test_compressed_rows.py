"""Compressed rows: moved, weighed and added as the equations say, compiled and in torch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import NoCompiler
from shoestring.kernels import compressed_rows as module
from shoestring.kernels.compressed_rows import (
    compressed_sum,
    move_rows,
    naive_compressed_sum,
    places_of,
)
from shoestring.notices import record_fallbacks
from shoestring.yardstick.flops import CostCounter


def drawn(batch, seq, share, seed):
    return torch.rand(batch, seq, generator=torch.Generator().manual_seed(seed)) < share


@given(
    batch=st.integers(1, 4),
    seq=st.sampled_from([1, 2, 7, 31]),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.1]),
    seed=st.integers(0, 99),
)
def test_places_number_the_active_tokens(batch, seq, share, seed):
    active = drawn(batch, seq, share, seed)
    for places in (places_of(active), in_torch(lambda: places_of(active))):
        counts = active.sum(1)
        assert torch.equal(places.counts, counts)
        assert places.slots == max(1, int(counts.max()))
        assert places.fewest == int(counts.min())
        slot_of, token_of = places.slot_of.view(batch, seq), places.token_of.view(batch, -1)
        for sample in range(batch):
            tokens = active[sample].nonzero().squeeze(1)
            slots = sample * places.slots + torch.arange(len(tokens))
            assert torch.equal(slot_of[sample][active[sample]], slots)
            assert slot_of[sample][~active[sample]].eq(-1).all()
            assert torch.equal(token_of[sample, : len(tokens)], tokens + sample * seq)
            assert token_of[sample, len(tokens) :].eq(-1).all()


def in_torch(work):
    """As on a machine without a compiler."""

    def none():
        raise NoCompiler("no compiler here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_library", none)
        with record_fallbacks() as said:
            found = work()
        assert any("no compiler here" in line for line in said)
        return found


SHAPES = {
    "batch": st.integers(1, 3), "seq": st.sampled_from([1, 2, 7, 40]), "dim": st.sampled_from([1, 3, 16, 37]),
    "share": st.sampled_from([0.0, 0.3, 0.8, 1.1, None]), "weighs": st.booleans(), "adds": st.booleans(),
    "seed": st.integers(0, 99),
}  # fmt: skip


def problem(batch, seq, dim, share, weighs, adds, seed):
    """Places, and h, weight, x and g in float64."""
    generator = torch.Generator().manual_seed(seed)
    places = None if share is None else places_of(drawn(batch, seq, share, seed))
    slots = batch * seq if places is None else len(places.token_of)
    shapes = (slots, dim), (batch * seq,), (batch * seq, dim), (batch * seq, dim)
    h, weight, x, g = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    return places, [h, *([weight] if weighs else []), *([x, g] if adds else [])]


def called(function, places, parts, weighs, adds):
    weight = parts[1] if weighs else None
    return function(parts[0], places, weight, to=tuple(parts[-2:]) if adds else None)


@given(**SHAPES)
def test_a_sum_follows_the_equation_with_its_gradient(batch, seq, dim, share, weighs, adds, seed):
    places, exact = problem(batch, seq, dim, share, weighs, adds, seed)
    for part in exact:
        part.requires_grad_()
    right = called(naive_compressed_sum, places, exact, weighs, adds)
    right = right + 0.0 * sum(part.sum() for part in exact)  # so that all have a gradient
    upstream = torch.randn(right.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = torch.autograd.grad((right * upstream).sum(), exact)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        rounded = [part.detach().to(dtype).requires_grad_() for part in exact]
        found = called(compressed_sum, places, rounded, weighs, adds)
        torch.testing.assert_close(found.double(), right, rtol=tolerance, atol=tolerance)
        mine = torch.autograd.grad((found * upstream.to(dtype)).sum(), rounded)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=10 * tolerance, atol=10 * tolerance)


@given(
    batch=st.integers(1, 3), seq=st.sampled_from([1, 5, 9]), share=st.sampled_from([0.0, 0.4, 1.1]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int32]),
)  # fmt: skip
def test_rows_of_any_type_move(batch, seq, share, dtype):
    places = places_of(drawn(batch, seq, share, 0))
    x = torch.arange(1, batch * seq * 3 + 1).view(-1, 3).to(dtype)
    moved = move_rows(x, places.token_of, places.slot_of)
    for row, token in zip(moved, places.token_of.tolist(), strict=True):
        assert torch.equal(row, x[token] if token >= 0 else torch.zeros_like(row))
    assert torch.equal(moved, in_torch(lambda: noticed_move(x, places)))


def noticed_move(x, places):
    places_of(torch.ones(1, 1, dtype=torch.bool))  # says that there is no compiler
    return move_rows(x, places.token_of, places.slot_of)


def test_moving_can_be_differentiated_twice():
    places = places_of(drawn(2, 5, 0.5, 3))
    x = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: move_rows(x, places.token_of, places.slot_of), (x,))
    assert torch.autograd.gradgradcheck(lambda x: move_rows(x, places.token_of, places.slot_of), (x,))


def test_the_number_of_threads_does_not_matter():
    places, exact = problem(2, 700, 64, 0.4, True, True, 0)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            parts = [part.float().requires_grad_() for part in exact]
            y = called(compressed_sum, places, parts, True, True)
            results.append([y, *torch.autograd.grad(y.square().sum(), parts)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_cost_is_stated():
    places, exact = problem(2, 8, 16, 0.4, True, True, 0)
    with CostCounter() as counter:
        called(compressed_sum, places, [part.float() for part in exact], True, True)
    assert counter.flops == 8 * 16 * 16


def test_bad_input():
    places = places_of(torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"h is \(3, 2\); these places need \(4, dim\)"):
        compressed_sum(torch.zeros(3, 2), places)
    with pytest.raises(ValueError, match=r"weight is \(3,\); these places need \(4,\)"):
        compressed_sum(torch.zeros(4, 2), places, torch.zeros(3))
    with pytest.raises(ValueError, match=r"to is \(4, 1\); these places need \(4, 2\)"):
        compressed_sum(torch.zeros(4, 2), places, to=(torch.zeros(4, 2), torch.zeros(4, 1)))
