import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from shoestring.yardstick import language_quality as lq

VOCABULARY = 13


class Bigram(nn.Module):
    """Logits depend on the token alone, so that every figure can be had by hand."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))

    def forward(self, ids):
        return self.table[ids]


def windows_of(count, length, seed=0):
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


def log_probabilities(model, window):
    """(length − 1, vocabulary) in float64."""
    return model.table.detach().double()[window[:-1]].log_softmax(-1)


@given(count=st.integers(1, 5), length=st.integers(2, 40), batch=st.integers(1, 4), pieces=st.integers(1, 50))
def test_perplexity_is_the_mean_over_tokens_whatever_the_batch(count, length, batch, pieces):
    model, windows = Bigram(0), windows_of(count, length)
    nll = [-log_probabilities(model, w)[i, w[i + 1]].item() for w in windows for i in range(length - 1)]
    at_once, lq.TOKENS_AT_ONCE = lq.TOKENS_AT_ONCE, pieces
    try:
        got = lq.perplexity(model, windows, batch_size=batch)
    finally:
        lq.TOKENS_AT_ONCE = at_once
    assert math.isclose(got.ppl, math.exp(sum(nll) / len(nll)), rel_tol=1e-6)
    assert got.protocol.tokens == len(nll)


class Counting(nn.Module):
    """Logits depend on all tokens so far: what a window holds before a token matters."""

    def forward(self, ids):
        seen = nn.functional.one_hot(ids, VOCABULARY).double().cumsum(1)
        return seen + seen.roll(1, -1)


@given(
    window=st.integers(2, 12),
    stride=st.integers(1, 12),
    extra=st.integers(0, 30),
    batch=st.integers(1, 4),
)
def test_overlapping_windows_count_the_last_tokens_of_each_with_their_context(window, stride, extra, batch):
    stride = min(stride, window)
    ids = windows_of(1, window + extra, seed=3)[0]
    nll, right = [], []
    for start in range(0, len(ids) - window + 1, stride):
        for place in range(start + max(1, window - stride), start + window):
            scores = Counting()(ids[None, start:place])[0, -1].log_softmax(-1)
            nll.append(-scores[ids[place]].item())
            right.append(scores.argmax().item() == ids[place])
    windows = ids.unfold(0, window, stride)
    got = lq.perplexity(Counting(), windows, stride=stride, batch_size=batch)
    assert math.isclose(got.nll, sum(nll) / len(nll), rel_tol=1e-6)
    assert got.accuracy == pytest.approx(sum(right) / len(right))
    assert (got.protocol.tokens, got.protocol.stride) == (len(nll), stride)
    assert got.protocol.skip == max(1, window - stride)
    both = lq.divergence(Counting(), lambda i: torch.zeros(*i.shape, VOCABULARY), windows, stride=stride)
    assert (both.model.nll, both.model.accuracy) == pytest.approx((got.nll, got.accuracy))
    assert both.original.protocol == got.protocol


def test_uniform_model_has_the_size_of_the_vocabulary():
    assert lq.perplexity(lambda ids: torch.zeros(*ids.shape, 7), windows_of(3, 9) % 7).ppl == pytest.approx(7)


def test_divergence_by_hand():
    model, original, windows = Bigram(1), Bigram(2), windows_of(4, 30)
    q = torch.cat([log_probabilities(model, w) for w in windows])
    p = torch.cat([log_probabilities(original, w) for w in windows])
    target = torch.cat([w[1:] for w in windows])[:, None]
    kld = (p.exp() * (p - q)).sum(-1)
    got = lq.divergence(model, original, windows, batch_size=3)
    assert got.kld == pytest.approx(kld.mean().item(), rel=1e-5)
    assert got.kld_max == pytest.approx(kld.max().item(), rel=1e-5)
    for share in (0.5, 0.9, 0.99, 0.999):
        found = got.kld_percentiles[f"{100 * share:g}"]
        assert found == pytest.approx(kld.quantile(share).item(), rel=1e-5)
    assert got.model.accuracy == pytest.approx((q.argmax(-1) == target[:, 0]).double().mean().item())
    assert got.original.accuracy == pytest.approx((p.argmax(-1) == target[:, 0]).double().mean().item())
    dp = q.gather(1, target).exp() - p.gather(1, target).exp()
    assert got.rms_dp == pytest.approx(dp.square().mean().sqrt().item(), rel=1e-5)
    assert got.same_top == pytest.approx((q.argmax(-1) == p.argmax(-1)).double().mean().item())
    assert got.ln_ratio == pytest.approx(math.log(got.model.ppl / got.original.ppl), rel=1e-9)
    per_window = (p - q).gather(1, target).view(4, -1).mean(1)
    assert got.ln_ratio_error == pytest.approx(per_window.std().item() / 2, rel=1e-5)


def test_a_model_does_not_diverge_from_itself():
    model = Bigram(3)
    got = lq.divergence(model, model, windows_of(2, 20))
    assert got.kld == 0
    assert got.ln_ratio == 0
    assert got.ln_ratio_error == 0
    assert got.same_top == 1
    assert got.rms_dp == 0


def test_several_models_are_compared_as_each_alone_and_the_original_runs_once():
    calls = []
    original, models, windows = Bigram(1), [Bigram(2), Bigram(3)], windows_of(3, 20)
    original.register_forward_hook(lambda *_: calls.append(1))
    models.insert(1, original)
    together = lq.divergences(models, original, windows)
    assert len(calls) == len(windows)
    assert together == [lq.divergence(model, original, windows) for model in models]
    assert together[1].kld == 0
    assert together[0].kld != together[2].kld


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    model, truth = Bigram(4), windows_of(4000, 8, seed=9)
    nll = (
        torch.stack([-log_probabilities(model, w).gather(1, w[1:, None]).mean() for w in truth]).mean().exp()
    )
    hits = 0
    for trial in range(100):
        low, high = lq.perplexity(model, truth[trial * 40 : trial * 40 + 40], batch_size=40).interval
        hits += low <= nll.item() <= high
    assert 88 <= hits <= 99


def test_a_single_window_admits_that_it_knows_no_spread():
    got = lq.perplexity(Bigram(0), windows_of(1, 8))
    assert got.error == math.inf


def test_models_return_to_training_mode_and_results_serialise():
    model = Bigram(5).train()
    document = lq.divergence(model, Bigram(6), windows_of(2, 5)).to_dict()
    assert model.training
    assert document["model"]["protocol"]["window"] == 5
    assert document["model"]["protocol"]["text_sha256"] == lq.text_sha256(windows_of(2, 5))


def test_other_text_has_another_hash():
    assert lq.text_sha256(windows_of(2, 5)) != lq.text_sha256(windows_of(2, 5, seed=1))


def test_bad_input():
    with pytest.raises(ValueError, match="no token to predict"):
        lq.perplexity(Bigram(0), windows_of(0, 5))
    with pytest.raises(ValueError, match="no token to predict"):
        lq.perplexity(Bigram(0), windows_of(2, 1))
    with pytest.raises(ValueError, match="stride=6 must lie between 1 and the window of 5"):
        lq.perplexity(Bigram(0), windows_of(2, 5), stride=6)
    with pytest.raises(ValueError, match="do not begin 3 tokens apart"):
        lq.divergence(Bigram(0), Bigram(1), windows_of(2, 5), stride=3)
    with pytest.raises(ValueError, match="batch_size=0"):
        lq.perplexity(Bigram(0), windows_of(2, 5), batch_size=0)
    with pytest.raises(ValueError, match="not finite"):
        lq.perplexity(lambda ids: torch.full((*ids.shape, 5), torch.nan), windows_of(2, 5))
    with pytest.raises(ValueError, match="must map ids"):
        lq.perplexity(lambda ids: torch.zeros(2, 3), windows_of(2, 5))
