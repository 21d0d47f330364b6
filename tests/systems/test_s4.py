"""The experiment behind the card of S4, small enough to check by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.pixel_sequences import digit_pixels
from shoestring.layers.state_space.discretise import DenseSystem, naive_taps
from shoestring.layers.state_space.hippo import dplr_legs
from shoestring.layers.state_space.s4_kernel import S4Kernel
from shoestring.models.state_space_lm import StateSpaceLM
from shoestring.systems import s4
from shoestring.systems.s4.claims import AS_GRU, AS_TRANSFORMER, FLAT, HIPPO, KERNEL_MEMORY
from shoestring.systems.s4.generation import VOCABULARY, _Writer, filled_cache, transformer_like
from shoestring.systems.s4.kernels import _peak, doubled_taps
from shoestring.systems.s4.memory import memory_rows
from shoestring.systems.s4.pixels import GRU_NAME, OURS, TRANSFORMER, PixelSettings, _arms, _beside, _Outcome
from shoestring.yardstick.comparison import Effort


@given(features=st.integers(1, 3), n=st.integers(1, 5), length=st.integers(1, 40), seed=st.integers(0, 9))
def test_doubled_powers_give_the_same_taps(features, n, length, seed):
    g = torch.Generator().manual_seed(seed)
    shapes = (features, n, n), (features, n), (2, features, n)
    parts = [torch.randn(*shape, dtype=torch.float64, generator=g) / n**0.5 for shape in shapes]
    system = DenseSystem(*(part.requires_grad_() for part in parts))
    fast, naive = doubled_taps(system, length), naive_taps(system, length)
    torch.testing.assert_close(fast, naive, rtol=1e-9, atol=1e-10)
    for one, other in zip(
        torch.autograd.grad(fast.square().sum(), parts, allow_unused=True),
        torch.autograd.grad(naive.square().sum(), parts, allow_unused=True),
        strict=True,
    ):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_powers_keep_every_state_and_ours_does_not():
    features, taps = 256, 128
    kernel = S4Kernel(features, dplr_legs(64))
    kernel.set_length(taps)
    system = kernel.discrete_system()
    dense = DenseSystem(*(x.detach().float().requires_grad_() for x in (system.a, system.b, system.c)))
    powers = _peak(lambda: naive_taps(dense, taps), kernel, dense)
    assert powers > 4 * features * 64 * taps
    assert _peak(lambda: kernel(taps), kernel, dense) < powers


def test_the_transformer_is_as_large_and_its_cache_is_full():
    lm = StateSpaceLM(VOCABULARY, s4.SMALL.d_model, s4.SMALL.n_layers)
    transformer = transformer_like(lm, s4.SMALL)
    ours, theirs = (sum(p.numel() for p in model.parameters()) for model in (lm, transformer))
    assert abs(ours - theirs) < 0.01 * ours
    cache = filled_cache(transformer, s4.SMALL)
    assert cache.next_pos.tolist() == [s4.SMALL.context] * s4.SMALL.batch
    assert sum(store.nbytes["k"] for store in cache.layers) >= 4 * 2 * 32 * s4.SMALL.context
    ids = torch.zeros(s4.SMALL.batch, 1, dtype=torch.int64)
    with torch.no_grad():
        twin = cache.clone()
        first = transformer(ids, cache=cache).logits
        twin.storage()[0]["v"][:, :, 7] += 1  # a token in the middle is seen
        assert (transformer(ids, cache=twin).logits - first).abs().max() > 1e-6


@torch.no_grad()
def test_what_is_written_is_the_most_likely_next():
    torch.manual_seed(0)
    lm = StateSpaceLM(VOCABULARY, 16, 1).eval()
    lm.setup_step()
    writer, ids = _Writer(lm, 2), torch.zeros(2, 1, dtype=torch.int64)
    for _ in range(5):
        writer.write()
        ids = torch.cat([ids, writer.ids[:, None]], dim=1)
    expected = lm(ids[:, :-1]).argmax(-1)
    assert torch.equal(ids[:, 1:], expected)


def test_the_models_are_of_one_size():
    task = digit_pixels(train_size=10, test_size=10)
    arms = _arms(task, PixelSettings(d_model=64, n_layers=2, seconds=None), 0)
    sizes = {name: sum(p.numel() for p in make().parameters()) for name, make in arms.items()}
    assert set(sizes) == {OURS, GRU_NAME, TRANSFORMER}
    assert max(sizes.values()) < 1.15 * min(sizes.values())
    assert all(make()(task.train.x).shape == (10, 10) for make in arms.values())


def test_accuracies_are_compared_picture_by_picture():
    ours = torch.tensor([True, True, True, False])
    theirs = torch.tensor([True, False, True, False])
    found = {OURS: _Outcome(ours, 1, 1, 1.0), GRU_NAME: _Outcome(theirs, 1, 1, 1.0)}
    row = _beside(AS_GRU, found, GRU_NAME)
    assert (row.method, row.baseline, row.difference) == (75, 50, 25)
    low, high = row.spread
    assert (low + high) / 2 == pytest.approx(25)
    assert high - low == pytest.approx(2 * 1.959964 * 50 / 2)


def test_a_delayed_signal_is_learnt():
    (row,) = memory_rows(25, 0, length=32)
    assert row.metric == HIPPO.metric
    assert 50 < row.method <= 100
    assert row.baseline <= 100


@pytest.mark.slow
def test_the_claims_about_quality_and_memory_hold():
    comparison = s4.measure(Effort.QUICK, 0)
    short = {row.metric for row in comparison.short}
    assert not short & {AS_TRANSFORMER.metric, AS_GRU.metric, KERNEL_MEMORY.metric, FLAT.metric}
