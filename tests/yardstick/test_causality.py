import pytest
import torch

from shoestring.yardstick.causality import influence, leaks

WEIGHT = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))


def test_influence_of_a_matrix_is_its_size():
    x = torch.randn(6, 1)
    assert torch.allclose(influence(lambda x: WEIGHT @ x, x), WEIGHT.abs())


def test_causal_and_leaking_functions():
    x = torch.randn(6, 2)
    assert not leaks(lambda x: WEIGHT.tril() @ x, x).any()
    assert leaks(lambda x: WEIGHT.tril() @ x, x, strict=True).diagonal().all()
    assert not leaks(lambda x: WEIGHT.tril(-1) @ x, x, strict=True).any()
    one = WEIGHT.tril()
    one[1, 4] = 1e-20
    assert leaks(lambda x: one @ x, x).nonzero().tolist() == [[1, 4]]


def test_an_unused_input_has_no_influence():
    assert influence(lambda x: x[:3] * 2, torch.randn(5, 1))[:, 3:].sum() == 0


def test_no_gradient_is_refused():
    with pytest.raises(ValueError, match="does not depend on x"):
        influence(lambda x: x.detach(), torch.randn(2, 1))
