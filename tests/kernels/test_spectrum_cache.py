import copy
import pickle

import pytest
import torch
from torch import nn

from shoestring.kernels.fft_convolution import KernelSpectrum, kernel_spectrum
from shoestring.kernels.spectrum_cache import SpectrumCache, may_keep_spectrum


class Kept:
    """A cache with a parameter, that counts how often the spectrum was made."""

    def __init__(self) -> None:
        self.kernel, self.cache, self.made = nn.Parameter(torch.randn(3, 16)), SpectrumCache(), 0

    def get(self, seq: int = 16) -> KernelSpectrum:
        def make() -> KernelSpectrum:
            self.made += 1
            return kernel_spectrum(self.kernel, seq)

        return self.cache.get([self.kernel], seq, make)


def test_kept_while_nothing_changes():
    kept = Kept()
    assert kept.get() is kept.get()
    assert kept.get(12) is kept.get(16)
    assert kept.made == 1


@pytest.mark.parametrize("change", ["write", "step", "replace", "data", "cast", "longer", "shorter", "clear"])
def test_made_anew(change):
    kept, seq = Kept(), 16
    kept.get()
    if change == "write":
        with torch.no_grad():
            kept.kernel[0, 0] = 5
    elif change == "step":
        optimizer = torch.optim.SGD([kept.kernel], lr=0.1)
        kept.kernel.sum().backward()
        optimizer.step()
    elif change == "replace":
        kept.kernel = nn.Parameter(kept.kernel.detach().clone())
    elif change == "data":
        kept.kernel.data = kept.kernel.data * 2
    elif change == "cast":
        kept.kernel.data = kept.kernel.data.double()
    elif change == "clear":
        kept.cache.clear()
    else:
        seq = 17 if change == "longer" else 4
    spectrum = kept.get(seq)
    assert kept.made == 2
    torch.testing.assert_close(spectrum.values, kernel_spectrum(kept.kernel, seq).values)
    assert kept.get(seq) is spectrum


def test_sources_of_inference_mode_are_not_kept():
    kept = Kept()
    with torch.inference_mode():
        kept.kernel = torch.randn(3, 16)
        kept.get()
        kept.get()
    assert kept.made == 2


def test_copies_and_pickles_are_empty():
    kept, other = Kept(), kernel_spectrum(torch.randn(3, 16), 16)
    kept.get()
    for cache in (copy.deepcopy(kept.cache), pickle.loads(pickle.dumps(kept.cache))):
        assert cache.get([kept.kernel], 16, lambda: other) is other


def test_only_in_evaluation_without_gradients():
    assert not may_keep_spectrum(training=False)
    with torch.no_grad():
        assert may_keep_spectrum(training=False)
        assert not may_keep_spectrum(training=True)
