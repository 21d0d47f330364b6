"""The compiled product of a packed linear layer, packed a second time in the order of the kernel.

That copy takes as many bytes as the stored codes and lives as long as the weight does; the stored form, which
saving and training use, is left alone.
"""

from weakref import WeakKeyDictionary

from torch import Tensor

from shoestring.kernels.grouped_linear import Activations, GroupedWeights
from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.layers.packed_linear import PackedLinear, PackedWeight

_Version = tuple[tuple[int, int], ...]
_packed: WeakKeyDictionary[PackedWeight, tuple[_Version, GroupedWeights]] = WeakKeyDictionary()


def packed_kernel(module: PackedLinear, activations: Activations) -> LinearKernel | None:
    """The kernel of a packed layer on the CPU; None while its scales are being trained, and elsewhere.

    Raises: NoCompiler.
    """
    weight = module.packed
    if weight.device.type != "cpu" or "trained_scale" in weight._parameters:
        return None
    return grouped_weights(weight).kernel(activations, module.bias)


def grouped_weights(weight: PackedWeight) -> GroupedWeights:
    """The kernel's form of a packed weight: made once, and again when the stored tensors have changed."""
    stored = weight.stored()
    version = tuple((part.data_ptr(), _version(part)) for part in stored.values())
    known = _packed.get(weight)
    if known is None or known[0] != version:
        known = version, GroupedWeights.pack(weight.form, stored, weight.cols)
        _packed[weight] = known
    return known[1]


def _version(tensor: Tensor) -> int:
    # What was made in inference mode counts no changes.
    return 0 if tensor.is_inference() else tensor._version
