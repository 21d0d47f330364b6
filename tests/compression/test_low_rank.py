"""Low-rank factors are the best of their rank: by the spectrum, and by the inputs where these are known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.models import batches, gpt2, llama
from torch import nn

from shoestring.compression import ActivationAwareLowRank, LowRank, apply, capture, plan, stored_bytes
from shoestring.compression.error_compensation import output_loss
from shoestring.compression.low_rank import naive_whitened_loss, truncated_factors, whitened_factors
from shoestring.layers import LowRankLinear


@given(rows=st.integers(2, 30), cols=st.integers(2, 30), data=st.data(), seed=st.integers(0, 20))
def test_truncation_loses_the_tail_of_the_spectrum(rows, cols, data, seed):
    rank = data.draw(st.integers(1, min(rows, cols)))
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    down, up = truncated_factors(weight, rank)
    tail = torch.linalg.svdvals(weight.double())[rank:].square().sum()
    torch.testing.assert_close(
        (weight - up @ down).double().square().sum(), tail, rtol=1e-3, atol=1e-6 * rows * cols
    )


@given(rows=st.integers(2, 24), cols=st.integers(2, 24), data=st.data(), seed=st.integers(0, 20))
def test_whitening_reaches_the_least_output_loss_of_the_rank(rows, cols, data, seed):
    rank = data.draw(st.integers(1, min(rows, cols)))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    x = torch.randn(3 * cols, cols, generator=generator) * torch.linspace(0.1, 3, cols)
    moment = x.T @ x / len(x)
    down, up = whitened_factors(weight, moment, rank)
    least = naive_whitened_loss(weight, moment, rank)
    whole = output_loss(weight, torch.zeros_like(weight), moment)
    assert output_loss(weight, up @ down, moment) == pytest.approx(least, rel=1e-3, abs=1e-5 * whole)
    plain_down, plain_up = truncated_factors(weight, rank)
    assert output_loss(weight, plain_up @ plain_down, moment) >= least - 1e-5 * whole


def test_a_singular_moment_is_damped():
    x = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
    down, up = whitened_factors(weight, x.T @ x, 2)
    torch.testing.assert_close(x @ (up @ down).T, x @ weight.T, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="not positive definite"):
        whitened_factors(weight, -torch.eye(12), 2)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_layers_become_thin_and_bytes_are_as_announced(make):
    model = make()
    recipe = {"*mlp*": LowRank(0.5)}
    chosen = plan(model, recipe)
    before = stored_bytes(model)
    change = sum(r.bytes_after(s.module) - sum(p.nbytes for p in s.module.parameters()) for s, r in chosen)
    ids = batches()[0]
    apply(model, recipe)
    assert stored_bytes(model) == before + change
    assert sum(isinstance(m, LowRankLinear) for m in model.modules()) == len(chosen) > 0
    assert torch.isfinite(model(ids)[0]).all()


def test_known_inputs_change_the_outputs_less():
    ids = batches(8)
    original = llama()
    calibration = capture(original, ids)
    changes = []
    with torch.no_grad():
        for recipe in (LowRank(0.5), ActivationAwareLowRank(0.5)):
            model = apply(llama(), {"*.down_proj": recipe}, calibration=calibration)
            changes.append(sum((model(b)[0] - original(b)[0]).square().sum().item() for b in ids))
    assert changes[1] < changes[0]


def test_a_layer_with_bias_keeps_it():
    layer = nn.Sequential(nn.Linear(20, 12))
    x = torch.randn(3, 20)
    expected = x @ layer[0].weight.T + layer[0].bias
    apply(layer, LowRank(7))
    assert (layer(x) - expected).norm() < expected.norm()
    exact = LowRankLinear.of(*truncated_factors(torch.eye(4), 4), torch.arange(4.0))
    torch.testing.assert_close(exact(torch.ones(1, 4)), 1 + torch.arange(4.0)[None])


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "rank=0 is neither a whole rank"),
        (1.5, "nor a share in"),
        (True, "rank=True is neither"),
    ],
)
def test_ranks_that_do_not_exist(rank, message):
    with pytest.raises(ValueError, match=message):
        LowRank(rank)


def test_ranks_that_save_nothing_and_modules_that_cannot_are_named():
    with pytest.raises(ValueError, match=r"'model.layers.0.mlp.up_proj' is 64×32: rank 30 .* use 1 to 21"):
        apply(llama(), {"*up_proj": LowRank(30)})
    with pytest.raises(ValueError, match="'model.embed_tokens' is an embedding; low rank is for linear"):
        apply(llama(tied=False), {"*embed_tokens": LowRank(4)})
    with pytest.raises(ValueError, match="is an embedding|shares its weight"):
        apply(llama(), {"lm_head": LowRank(4)})
