"""The loss of decoding, all at once, is the loss of decoding token by token; what the rivals leave out."""

import math

import pytest
import torch
from tests.models.families import ids_of, make
from torch.nn import functional as F

from shoestring.compression import apply, block_linears, capture_scores, r_sparse_recipes
from shoestring.compression.score_quantiles import ValueTable
from shoestring.compression.sparsity_baselines import (
    Cats,
    RandomChannels,
    ReluActivation,
    ReluInputs,
    capture_gates,
    skippable_share,
)
from shoestring.compression.tail_loss import TailDivergence, TailLoss
from shoestring.generation.decoder_runner import DecoderRunner
from shoestring.layers.row_sparse_linear import row_sparse_layers
from shoestring.models.decoder import Decoder
from shoestring.models.hooks import Phase


def decoder(family="llama"):
    return Decoder.from_transformers(make(family))


def sparse(model, sparsity=0.4, alpha=1.0):
    scores = capture_scores(model, [ids_of(4, 80)], block_linears(model))
    return apply(model, r_sparse_recipes(model, sparsity, alpha), calibration=scores)


@torch.inference_mode()
def token_by_token(model, windows, tail, hooks=()):
    """The definition: a prompt at once, then every token by itself."""
    losses = []
    for ids in windows:
        runner = DecoderRunner(model, hooks=hooks)
        runner.feed(ids[None, :-tail])
        logits = [runner.feed(ids[None, i : i + 1]) for i in range(len(ids) - tail, len(ids))]
        losses.append(F.cross_entropy(torch.cat(logits)[:-1], ids[-tail + 1 :]).item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("family", ["llama", "gemma 3"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_the_divergence_is_that_of_decoding_token_by_token(family, alpha):
    windows = ids_of(3, 20, seed=5)
    model = decoder(family)
    found = TailDivergence(model, windows, 8, batch=2)
    torch.testing.assert_close(found.windows(), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)

    def log_p():
        runners = [DecoderRunner(model) for _ in windows]
        for runner, ids in zip(runners, windows, strict=True):
            runner.feed(ids[None, :-8])
        fed = [
            [runner.feed(ids[None, i : i + 1])[0] for i in range(12, 20)]
            for runner, ids in zip(runners, windows, strict=True)
        ]
        return torch.stack([torch.stack(rows) for rows in fed]).double().log_softmax(-1)

    with torch.inference_mode():
        dense = log_p()
        sparse(model, sparsity=0.7, alpha=alpha)
        own = log_p()
    expected = (dense.exp() * (dense - own)).sum(-1).mean(1)
    torch.testing.assert_close(found.windows(), expected, rtol=1e-2, atol=1e-5)
    assert found() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma 3"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_it_is_the_loss_of_decoding_token_by_token(family, alpha):
    windows = ids_of(3, 20, seed=5)
    model = sparse(decoder(family), alpha=alpha)
    found = TailLoss(model, windows, 8, batch=2)
    assert found.tokens == 3 * 7
    expected = token_by_token(model, windows, 8)
    torch.testing.assert_close(found.windows(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.windows(), found.windows(), rtol=0, atol=0)  # the cache was put back
    assert found() == pytest.approx(expected.mean().item(), rel=1e-3)
    dense = TailLoss(decoder(family), windows, 8).windows()
    assert (found.windows() - dense).abs().max() > 1e-2


def test_a_transformers_model_has_the_same_loss():
    windows = ids_of(3, 20, seed=5)
    theirs, ours = sparse(make("llama")), sparse(decoder())
    torch.testing.assert_close(
        TailLoss(theirs, windows, 8).windows(), TailLoss(ours, windows, 8).windows(), rtol=1e-3, atol=1e-3
    )
    plain = TailLoss(make("llama"), windows, 8).windows()
    torch.testing.assert_close(plain, TailLoss(decoder(), windows, 8).windows(), rtol=1e-3, atol=1e-3)


def test_no_numbers_are_an_infinite_loss():
    model = sparse(decoder())
    next(iter(row_sparse_layers(model).values())).rows.fill_(torch.nan)
    assert TailLoss(model, ids_of(2, 20), 8)() == math.inf


def test_tails_that_leave_nothing():
    for tail in (1, 20):
        with pytest.raises(ValueError, match=f"tail={tail} must be 2 or more, and less than a window of 20"):
            TailLoss(decoder(), ids_of(2, 20), tail)


def rivals(model):
    tables = capture_gates(model, [ids_of(4, 40)])
    return {
        "relu": lambda: ReluActivation(model),
        "relu inputs": ReluInputs,
        "chance": lambda: RandomChannels(0.5, 1),
        "cats": lambda: Cats(model, tables, 0.3),
    }


@pytest.mark.parametrize("name", ["relu", "relu inputs", "cats"])
def test_rivals_treat_decoded_tokens_and_no_prompt(name):
    model, windows = decoder(), ids_of(2, 20, seed=5)
    make_hook = rivals(model)[name]
    found = TailLoss(model, windows, 8).windows((make_hook(),))
    torch.testing.assert_close(found, token_by_token(model, windows, 8, (make_hook(),)), rtol=1e-3, atol=1e-3)
    with torch.inference_mode():
        assert torch.equal(model(windows, hooks=(make_hook(),)).logits, model(windows).logits)


def project(hook, x, weights, names, layer=0):
    return hook.linear(layer, names, x, Phase.DECODE, lambda y: tuple(y @ w.T for w in weights))


def test_cats_leaves_out_neurons_with_a_small_gate():
    model = decoder()
    hook = Cats(model, capture_gates(model, [ids_of(4, 40)]), 0.3)
    assert hook.share == pytest.approx(0.3 / skippable_share(model))
    x, weights = torch.randn(1, 5, 48), [torch.randn(64, 48), torch.randn(64, 48)]
    gate, up = project(hook, x, weights, ("gate_proj", "up_proj"), layer=2)
    active = F.silu(x @ weights[0].T).abs() > hook.thresholds[2]
    assert torch.equal(gate, x @ weights[0].T)
    assert torch.equal(up, x @ weights[1].T * active)
    assert active.any()
    assert not active.all()
    with pytest.raises(ValueError, match=r"sparsity=0\.9 is more than up and down hold .* CATS"):
        Cats(model, {0: ValueTable()}, 0.9)


def test_cats_keeps_the_share_it_was_set_for():
    model = decoder()
    tables = capture_gates(model, [ids_of(8, 60)])
    hook = Cats(model, tables, 0.3)
    seen = capture_gates(model, [ids_of(8, 60, seed=9)])
    for layer, threshold in hook.thresholds.items():
        below = seen[layer].magnitude_quantile(hook.share)
        assert below == pytest.approx(threshold, rel=0.1)


def test_relu_skips_neurons_whose_gate_is_negative():
    model = decoder()
    hook = ReluActivation(model)
    x, weights = torch.randn(1, 5, 48), [torch.randn(64, 48), torch.randn(64, 48)]
    gate, up = project(hook, x, weights, ("gate_proj", "up_proj"))
    (out,) = project(hook, F.silu(gate) * up, [torch.eye(64)], ("down_proj",))
    torch.testing.assert_close(out, gate.clamp(min=0) * up)
    assert hook.sparsity == pytest.approx(skippable_share(model) * (gate <= 0).float().mean().item())


def test_chance_keeps_its_share_and_follows_its_seed():
    x = torch.ones(1, 50, 200)
    first, again, other = (
        project(RandomChannels(0.3, seed), x, [torch.eye(200)], ("o_proj",))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.mean().item() == pytest.approx(0.7, abs=0.02)
    assert set(first.unique().tolist()) == {0.0, 1.0}
