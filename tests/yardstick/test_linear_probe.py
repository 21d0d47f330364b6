"""The probe against scikit-learn's, and on what cannot be told apart."""

import pytest
import torch

from shoestring.yardstick.linear_probe import probe_accuracy


def clusters(spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 6, generator=generator)
    labels = torch.arange(80) % 4
    return centres[labels] + spread * torch.randn(80, 6, generator=generator), labels


@pytest.mark.parametrize("spread", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("c", [0.1, 30.0])
def test_it_names_what_scikit_learn_names(spread, c):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = clusters(spread)
    theirs = linear_model.LogisticRegression(C=c, max_iter=5000, tol=1e-9).fit(x[:40], y[:40])
    expected = theirs.score(x[40:], y[40:])
    assert probe_accuracy(x[:40], y[:40], x[40:], y[40:], c=c) == pytest.approx(expected, abs=0.026)


def test_it_knows_nothing_of_noise():
    x, y = clusters(0.0)
    assert probe_accuracy(x[:40], y[:40], x[40:], y[40:]) == 1
    noise = torch.zeros_like(x)
    assert probe_accuracy(noise[:40], y[:40], noise[40:], y[40:]) == 0.25


def test_what_does_not_fit_is_refused():
    x, y = clusters(1.0)
    with pytest.raises(ValueError, match="c=0"):
        probe_accuracy(x, y, x, y, c=0.0)
    with pytest.raises(ValueError, match="0 to test"):
        probe_accuracy(x, y, x[:0], y[:0])
