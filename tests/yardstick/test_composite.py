"""Inference mode hides the parts of operators from dispatch modes; the yardsticks see them all the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.yardstick.flops import CostCounter
from shoestring.yardstick.memory import LiveMemory

X = torch.randn(2, 8, 16)


def _attention() -> Tensor:
    return F.scaled_dot_product_attention(X[:, None], X[:, None], X[:, None])


def _explicit() -> Tensor:
    return (X @ X.transpose(1, 2)).softmax(-1) @ X


LAYER, WEIGHT = nn.Linear(16, 4), torch.randn(3, 8, 3)
WORKS = {
    "linear": lambda: LAYER(X),
    "attention": _attention,
    "explicit attention": _explicit,
    "einsum": lambda: torch.einsum("bnd,bmd->bnm", X, X),
    "norm": lambda: F.layer_norm(X, (16,)),
    "convolution": lambda: F.conv1d(X, WEIGHT),
}


@pytest.mark.parametrize("name", WORKS)
def test_counts_are_those_without_inference_mode(name):
    counts = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), CostCounter() as cost:
            WORKS[name]()
        counts.append((cost.flops, cost.contraction_flops, cost.bytes, cost.flops_by_operation))
    assert counts[0] == counts[1]
    assert counts[0][0] > 0


@pytest.mark.parametrize("name", WORKS)
def test_peaks_are_those_without_inference_mode(name):
    peaks = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), LiveMemory(X) as memory:
            WORKS[name]()
        peaks.append(memory.peak_dynamic_bytes)
    assert peaks[0] == peaks[1] > 0
