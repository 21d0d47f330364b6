"""The sparse layer computes what its expanded matrix computes, stays as stored, and moves like any module."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shoestring.kernels.costs import Cost, listen
from shoestring.kernels.sparse.linear import library
from shoestring.layers import sparse_linear as module
from shoestring.layers.sparse_linear import MOST_TOKENS, SparseLinear
from shoestring.notices import record_fallbacks
from shoestring.numbers.bitmap_matrix import BitmapMatrix
from shoestring.numbers.sparse_values import ValueKind


def layer_of(rows: int, cols: int, kind=ValueKind.BFLOAT16, bias=True, seed=0) -> SparseLinear:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    weight = weight * (torch.rand(rows, cols, generator=generator) >= 0.7)
    own = torch.randn(rows, generator=generator) if bias else None
    return SparseLinear.of(BitmapMatrix.from_dense(weight, kind), own)


def expected(layer: SparseLinear, x: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.float()
    return F.linear(x, layer.matrix.to_dense(), bias)


@pytest.mark.parametrize("kind", list(ValueKind))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (MOST_TOKENS,), (MOST_TOKENS + 1,), (2, 0)])
def test_forward_equals_the_expanded_matrix(kind, bias, batch):
    layer, x = layer_of(21, 75, kind, bias), torch.randn(*batch, 75)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected(layer, x), rtol=1e-5, atol=1e-5)
        assert torch.equal(layer.weight, layer.matrix.to_dense())


@pytest.mark.parametrize("tokens", [2, MOST_TOKENS + 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_output_has_the_type_of_the_input(dtype, tokens):
    layer, x = layer_of(12, 32), torch.randn(tokens, 32)
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected(layer, x), rtol=0.05, atol=0.1)


def test_autocast_chooses_the_type():
    layer, x = layer_of(12, 32), torch.randn(3, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected(layer, x), rtol=0.05, atol=0.1)


def test_the_gradient_of_the_input_is_that_of_the_dense_layer_and_the_weight_has_none():
    layer = layer_of(9, 40)
    x = torch.randn(4, 40).requires_grad_()
    layer(x).square().sum().backward()
    y = x.detach().clone().requires_grad_()
    expected(layer, y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in layer.parameters())
    assert not layer.weight.requires_grad


@pytest.mark.parametrize("kind", list(ValueKind))
def test_changing_the_type_of_the_model_keeps_the_stored_tensors(kind):
    layer = layer_of(6, 40, kind, bias=False)
    before, model = copy.deepcopy(layer.state_dict()), nn.Sequential(layer)
    for convert in (
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.double(),
        lambda m: m.float(),
    ):
        convert(model)
        for key, value in layer.state_dict().items():
            assert value.dtype == before[key].dtype
            assert torch.equal(value, before[key])


def test_the_state_dict_is_the_stored_form_and_loads_back():
    layer = layer_of(10, 50, ValueKind.INT8)
    state = layer.state_dict()
    assert sum(v.nbytes for v in state.values()) == layer.nbytes + 40
    fresh = SparseLinear(50, 10, ValueKind.INT8, layer.nonzeros)
    fresh.load_state_dict(state)
    x = torch.randn(4, 50)
    assert torch.equal(fresh(x), layer(x))


def test_copies_and_pickles_compute_alone():
    """The kernel holds addresses: it must not travel, and must follow tensors that are replaced."""
    layer, x = layer_of(10, 50), torch.randn(2, 50)
    before = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not twin._kernels
        twin.values.zero_()
        twin.bias.zero_()
        assert not twin(x).any()
    assert torch.equal(layer(x), before)
    state = {name: part.clone() for name, part in layer.state_dict().items()}
    state["values"].zero_()
    twin = layer_of(10, 50)
    assert torch.equal(twin(x), before)
    twin.load_state_dict(state, assign=True)
    assert torch.equal(twin(x), layer.bias.expand(2, -1))
    layer.bias.add_(1)
    assert torch.allclose(layer(x), before + 1)


def test_contradicting_tensors_never_reach_the_kernel():
    layer = layer_of(10, 50)
    layer.row_starts[3] += 7
    with pytest.raises(ValueError, match="not those that its masks count"):
        layer(torch.randn(1, 50))


def test_the_cost_is_stated_once():
    layer, heard = layer_of(10, 64), []
    with listen(lambda name, cost: heard.append((name, cost))), torch.no_grad():
        layer(torch.randn(3, 64))
    assert heard == [("sparse_linear", Cost(2 * 3 * 640, layer.nbytes + 4 * 3 * (64 + 10)))]


def test_without_a_compiler_torch_answers_and_says_so(monkeypatch):
    layer, x = layer_of(10, 64), torch.randn(3, 64)
    fast = layer(x)
    monkeypatch.setenv("SHOESTRING_CC", "none")
    library.cache_clear()
    layer._kernels.clear()
    try:
        with record_fallbacks() as said:
            slow = layer(x)
    finally:
        library.cache_clear()
    assert any("expands its matrix at every call" in line for line in said)
    torch.testing.assert_close(slow, fast, rtol=1e-5, atol=1e-5)


def test_moves_to_another_device():
    layer = copy.deepcopy(layer_of(10, 64)).to("meta")
    assert all(b.is_meta for b in layer.buffers())
    assert "10, bfloat16" in repr(layer)
    assert module.stored_shapes(64, 10, ValueKind.BFLOAT16, 3)["values"] == ((35,), torch.int16)
