import numpy as np
import pytest
import scipy.stats
import torch

from shoestring.yardstick.paired_difference import paired_difference


def test_means_and_interval_are_those_of_scipy():
    generator = torch.Generator().manual_seed(0)
    baseline = torch.randn(40, generator=generator, dtype=torch.float64)
    method = 0.5 * baseline + torch.randn(40, generator=generator, dtype=torch.float64)
    found = paired_difference(method, baseline)
    difference = (method - baseline).numpy()
    expected = scipy.stats.norm.interval(0.95, difference.mean(), scipy.stats.sem(difference))
    np.testing.assert_allclose(found["spread"], expected, rtol=1e-6)
    assert found["method"] == pytest.approx(method.mean().item())
    assert found["baseline"] == pytest.approx(baseline.mean().item())


def test_hits_in_percent():
    hits = torch.tensor([True, True, False, True])
    found = paired_difference(hits, hits, scale=100)
    assert found == {"baseline": 75.0, "method": 75.0, "spread": (0.0, 0.0)}


@pytest.mark.parametrize(("ours", "theirs"), [(3, 2), (1, 1)])
def test_bad_input(ours, theirs):
    with pytest.raises(ValueError, match=f"{ours} samples of the method and {theirs} of the baseline"):
        paired_difference(torch.zeros(ours), torch.zeros(theirs))
