"""Packed layers compute what their dequantised matrix computes, in little memory, and stay packed."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from shoestring.layers import packed_linear
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
from shoestring.numbers import GroupedAffine, ZeroPoint, fit_least_squares, fit_min_max


def packed(rows: int, cols: int, form: GroupedAffine, dtype: torch.dtype = torch.float32) -> PackedWeight:
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows + cols))
    grid = fit_min_max(form, weight)
    return PackedWeight.of(form, form.encode(weight, grid), grid, dtype)


@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 4),
    bits=st.integers(2, 8),
    zero_point=st.sampled_from(list(ZeroPoint)),
    chunk=st.sampled_from([1, 100, 1 << 22]),
    batch=st.sampled_from([(), (3,), (2, 0), (2, 3)]),
)
def test_forward_equals_the_dequantised_matrix(rows, groups, bits, zero_point, chunk, batch):
    form = GroupedAffine(bits, 8, zero_point)
    weight = packed(rows, 8 * groups, form)
    bias = torch.randn(rows)
    layer = PackedLinear(weight, bias)
    x = torch.randn(*batch, 8 * groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_linear, "CHUNK_ELEMENTS", chunk)
        y = layer(x)
    dense = form.dequantise(weight.stored(), 8 * groups)
    torch.testing.assert_close(y, F.linear(x, dense, bias), rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.weight, dense)


def test_the_gradient_of_the_input_is_that_of_the_dense_layer(monkeypatch):
    monkeypatch.setattr(packed_linear, "CHUNK_ELEMENTS", 50)
    layer = PackedLinear(packed(21, 16, GroupedAffine(4, 8)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 16, generator=generator, dtype=torch.float64).requires_grad_()
    layer(x).square().sum().backward()
    y = x.detach().clone().requires_grad_()
    F.linear(y, layer.weight.double()).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_output_has_the_type_of_the_input(dtype):
    layer = PackedLinear(packed(12, 16, GroupedAffine(4, 8)), torch.randn(12))
    assert layer(torch.randn(3, 16, dtype=dtype)).dtype == dtype


def test_autocast_chooses_the_type():
    layer = PackedLinear(packed(12, 16, GroupedAffine(4, 8)))
    x = torch.randn(3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        z = nn.Linear(16, 12)(x)
    assert y.dtype == z.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_changing_the_type_of_the_model_keeps_the_stored_tensors():
    form = GroupedAffine(3, 8, ZeroPoint.REAL, 8)
    weight = packed(6, 16, form)
    before = {k: v.clone() for k, v in weight.state_dict().items()}
    model = nn.Sequential(PackedEmbedding(weight), PackedLinear(weight))
    for convert in (
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.double(),
        lambda m: m.float(),
    ):
        convert(model)
        for key, value in weight.state_dict().items():
            assert value.dtype == before[key].dtype
            assert torch.equal(value, before[key])
    model.to(torch.bfloat16)
    assert model[0](torch.tensor([[1, 2]])).dtype == torch.bfloat16
    assert model[0].packed is model[1].packed


def test_moving_to_another_device_keeps_a_tie():
    weight = packed(6, 16, GroupedAffine(4, 8))
    model = nn.Sequential(PackedEmbedding(weight), PackedLinear(weight))
    model[1].borrow()
    assert (model[0].borrows, model[1].borrows) == (False, True)
    assert list(model.state_dict()) == ["0.packed.codes", "0.packed.scales"]
    model = copy.deepcopy(model).to("meta")
    assert model[0].packed is model[1].packed
    assert model[0].packed.codes.is_meta
    assert model[0].packed.scales.dtype == torch.float16


def test_embedding_gives_rows_of_the_table():
    form = GroupedAffine(5, 8)
    layer = PackedEmbedding(packed(30, 16, form))
    ids = torch.tensor([[0, 29, 7], [7, 7, 1]])
    assert torch.equal(layer(ids), F.embedding(ids, layer.weight))
    assert layer(torch.empty(0, 4, dtype=torch.long)).shape == (0, 4, 16)


def test_state_dict_is_the_stored_form_and_loads_back():
    form = GroupedAffine(3, 8, ZeroPoint.INTEGER, 6)
    layer = PackedLinear(packed(10, 16, form), torch.randn(10))
    state = layer.state_dict()
    assert sum(v.nbytes for v in state.values()) == form.nbytes(10, 16) + 40
    fresh = PackedLinear(PackedWeight(form, 10, 16), torch.zeros(10))
    fresh.load_state_dict(state)
    x = torch.randn(4, 16)
    assert torch.equal(fresh(x), layer(x))


@pytest.mark.parametrize("zero_point", list(ZeroPoint))
@pytest.mark.parametrize("scale_bits", [16, 8])
def test_training_the_scales_lowers_the_loss_and_packs_again(zero_point, scale_bits):
    form = GroupedAffine(2, 8, zero_point, scale_bits)
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    grid = fit_least_squares(form, weight)
    packed = PackedWeight.of(form, form.encode(weight, grid), grid)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    target = x @ weight.T
    with torch.no_grad():
        before = (packed(x) - target).square().mean()
        packed.unpack_for_training()
        torch.testing.assert_close((packed(x) - target).square().mean(), before)
    optimizer = torch.optim.Adam(packed.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        (packed(x) - target).square().mean().backward()
        optimizer.step()
    nbytes = packed.repack().nbytes
    assert not list(packed.parameters())
    assert sum(b.nbytes for b in packed.buffers()) == nbytes
    assert (packed(x) - target).square().mean() < before


def test_a_large_head_is_never_materialised():
    """The peak of live tensor bytes during a forward stays far below the dequantised matrix."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        nbytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
            return out

    layer = PackedLinear(PackedWeight(GroupedAffine(4, 32), 49152, 576))
    with Largest() as largest, torch.no_grad():
        layer(torch.randn(1, 576))
    assert layer.out_features * layer.in_features * 4 == 113_246_208
    assert largest.nbytes <= 4 * packed_linear.CHUNK_ELEMENTS
