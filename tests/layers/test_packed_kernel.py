"""A packed weight is held once, as stored or in the order of its kernel, and comes back bit for bit."""

import copy

import hypothesis.strategies as st
import torch
from hypothesis import given

from shoestring.kernels.grouped_linear import Activations
from shoestring.layers.packed_kernel import packed_kernel
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint
from shoestring.yardstick.memory import tensor_bytes


def packed_weight(seed):
    form, generator = GroupedAffine(4, 16), torch.Generator().manual_seed(seed)
    codes = torch.randint(16, (20, 32), generator=generator, dtype=torch.uint8)
    return PackedWeight.of(form, codes, form.represent(torch.ones(20, 2), torch.zeros(20, 2)))


def test_a_weight_is_packed_once_until_it_changes():
    weight = packed_weight(0)
    first = weight.pack_for_kernel()
    assert weight.pack_for_kernel() is first
    weight.scales *= 2
    changed = weight.pack_for_kernel()
    assert changed is not first
    layer, x = PackedLinear(weight, torch.arange(20.0)), torch.randn(3, 32)
    torch.testing.assert_close(packed_kernel(layer, Activations.FLOAT32)(x), layer(x), rtol=0, atol=1e-3)
    weight.codes = packed_weight(1).codes
    torch.testing.assert_close(packed_kernel(layer, Activations.FLOAT32)(x), layer(x), rtol=0, atol=1e-3)


def test_scales_in_training_have_no_kernel():
    weight = packed_weight(0).unpack_for_training()
    assert packed_kernel(PackedLinear(weight), Activations.INT8) is None


def test_training_takes_the_weight_back():
    weight = packed_weight(0)
    before = {name: part.clone() for name, part in weight.state_dict().items()}
    weight.pack_for_kernel()
    weight.unpack_for_training().repack()
    assert weight.kernel_form is None
    assert all(torch.equal(before[name], part) for name, part in weight.state_dict().items())


@given(
    bits=st.integers(2, 8),
    group_size=st.sampled_from([1, 3, 8, 16, 24, 32, 97]),
    zero_point=st.sampled_from(ZeroPoint),
    scale_bits=st.sampled_from([6, 8, 16]),
    rows=st.integers(1, 40),
    groups=st.integers(1, 4),
)
def test_what_was_stored_comes_back_bit_for_bit(bits, group_size, zero_point, scale_bits, rows, groups):
    form, cols = GroupedAffine(bits, group_size, zero_point, scale_bits), groups * group_size
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(form.levels, (rows, cols), generator=generator, dtype=torch.uint8)
    scale, shift = torch.rand(2, rows, groups, generator=generator)
    weight = PackedWeight.of(form, codes, form.represent(scale + 0.01, shift))
    stored = {name: part.clone() for name, part in weight.stored().items()}
    state = {name: part.clone() for name, part in weight.state_dict().items()}
    dense = weight.dequantise()
    weight.pack_for_kernel()
    assert weight.kernel_form is not None
    some = torch.tensor([rows - 1, 0])
    for chosen in (slice(None), slice(rows // 2, None), some):
        for name, part in weight.stored(chosen).items():
            assert part.dtype == stored[name].dtype
            assert torch.equal(part, stored[name][chosen]), name
    assert torch.equal(weight.dequantise(), dense)
    assert torch.equal(weight.dequantise(some), dense[some])
    assert weight.kernel_form is not None  # all of this without going back
    for held in (weight, copy.deepcopy(weight), weight.to(torch.bfloat16)):
        found = held.state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], part) for name, part in state.items())
    fresh = PackedWeight(form, rows, cols)
    fresh.pack_for_kernel()
    fresh.load_state_dict(state)
    assert torch.equal(fresh.codes, stored["codes"])


def test_a_weight_is_in_memory_once():
    form = GroupedAffine(4, 32, ZeroPoint.REAL)
    weight = PackedWeight(form, 256, 512)
    stored = tensor_bytes(weight)
    assert stored == form.nbytes(256, 512)
    weight.pack_for_kernel()
    ends = 3 * 64 + 3 * 2048  # alignment, and what may be prefetched behind each of three tensors
    assert stored <= tensor_bytes(weight) <= stored + ends


def test_modules_work_on_a_weight_that_a_kernel_holds():
    weight = packed_weight(3)
    layer, embedding = PackedLinear(weight), PackedEmbedding(weight)
    x, ids = torch.randn(4, 32), torch.tensor([[3, 19]])
    y, rows = layer(x), embedding(ids)
    weight.pack_for_kernel()
    assert torch.equal(layer(x), y)
    assert torch.equal(embedding(ids), rows)
