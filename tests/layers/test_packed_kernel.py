"""The kernel's copy of a packed weight: made once, and again when the weight has changed."""

import torch

from shoestring.kernels.grouped_linear import Activations
from shoestring.layers.packed_kernel import grouped_weights, packed_kernel
from shoestring.layers.packed_linear import PackedLinear, PackedWeight
from shoestring.numbers.grouped_affine import GroupedAffine


def packed_weight(seed):
    form, generator = GroupedAffine(4, 16), torch.Generator().manual_seed(seed)
    codes = torch.randint(16, (20, 32), generator=generator, dtype=torch.uint8)
    return PackedWeight.of(form, codes, form.represent(torch.ones(20, 2), torch.zeros(20, 2)))


def test_a_weight_is_packed_once_until_it_changes():
    weight = packed_weight(0)
    first = grouped_weights(weight)
    assert grouped_weights(weight) is first
    weight.scales *= 2
    changed = grouped_weights(weight)
    assert changed is not first
    layer, x = PackedLinear(weight, torch.arange(20.0)), torch.randn(3, 32)
    torch.testing.assert_close(packed_kernel(layer, Activations.FLOAT32)(x), layer(x), rtol=0, atol=1e-3)
    weight.codes = packed_weight(1).codes
    torch.testing.assert_close(packed_kernel(layer, Activations.FLOAT32)(x), layer(x), rtol=0, atol=1e-3)


def test_scales_in_training_have_no_kernel():
    weight = packed_weight(0).unpack_for_training()
    assert packed_kernel(PackedLinear(weight), Activations.INT8) is None
