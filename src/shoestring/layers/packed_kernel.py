"""The compiled product of a packed linear layer, whose weight is then held in the order of the kernel."""

from shoestring.kernels.grouped_linear import Activations
from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.layers.packed_linear import PackedLinear


def packed_kernel(module: PackedLinear, activations: Activations) -> LinearKernel | None:
    """The kernel of a packed layer on the CPU; None while its scales are being trained, and elsewhere.

    Raises: NoCompiler.
    """
    weight = module.packed
    if weight.device.type != "cpu" or "trained_scale" in weight._parameters:
        return None
    return weight.pack_for_kernel().kernel(activations, module.bias)
