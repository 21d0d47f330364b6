"""A long convolution whose Fourier transforms are learned: the small matrices in them are parameters.

The transform of the signal and that of the kernel have matrices of their own, that back is the exact one.
Once trained it is a convolution no longer, and every output depends on every input: along time it suits
models that may look ahead; in those that may not it goes along the features.

Source: Fu et al. 2023, "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", section 3.3.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.block_dft import (
    Matrices,
    block_dft,
    block_inverse_dft,
    block_length,
    block_radices,
    dft_matrix,
)
from shoestring.kernels.fft_convolution_torch import check_finite
from shoestring.layers.parameter_hint import ParameterHint

INITIAL_DEVIATION = 0.01


@dataclass(frozen=True, kw_only=True)
class ButterflyOptions:
    """How the matrices are learned.

    `additive`: exact matrices plus learned ones that begin at 0.01 · N(0, 1), of which `dropout` is left out
    in training; else the matrices begin as the exact ones. `per_channel`: a set for each channel, not one.
    Raises: ValueError for a dropout outside 0 … 1, or one without additive matrices.
    """

    additive: bool = False
    dropout: float = 0.0
    per_channel: bool = False
    learning_rate: float | None = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout={self.dropout} must lie in 0 … 1")
        if self.dropout and not self.additive:
            raise ValueError(f"dropout={self.dropout} is that of additive matrices; give additive=True too")


class LearnedTransform(nn.Module):
    """A block transform of n points; splits of one size share their matrix.

    The parameter of size s is called `matrix_s`, real, of shape (1 or channels, s, s, 2).
    """

    def __init__(
        self, n: int, channels: int, options: ButterflyOptions, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.n, self.options = n, options
        self.sizes = sorted(set(block_radices(n)))
        copies = channels if options.per_channel else 1
        for size in self.sizes:
            shape = (copies, size, size, 2)
            if options.additive:
                start = INITIAL_DEVIATION * torch.randn(shape, generator=generator)
            else:
                start = torch.view_as_real(dft_matrix(size)).expand(shape).clone()
            self.register_parameter(f"matrix_{size}", nn.Parameter(start))
        hint = ParameterHint(learning_rate=options.learning_rate)
        self.parameter_hints = {f"matrix_{size}": hint for size in self.sizes}

    def matrices(self) -> Matrices:
        """The complex matrices now in use, by size; not below float32, in which transforms are computed."""
        found = {}
        for size in self.sizes:
            learned = getattr(self, f"matrix_{size}")
            learned = learned.to(torch.promote_types(learned.dtype, torch.float32))
            if self.options.additive:
                learned = F.dropout(learned, self.options.dropout, self.training)
            matrix = torch.view_as_complex(learned)
            if self.options.additive:
                matrix = matrix + dft_matrix(size, matrix.dtype, matrix.device)
            found[size] = matrix
        return found

    def forward(self, x: Float[Tensor, "*batch channels seq"]) -> Tensor:
        """The complex spectrum (…, channels, n) of a real signal, padded with zeros."""
        matrices = self.matrices()
        precision = matrices[self.sizes[0]].real.dtype
        padded = F.pad(x.to(precision), (0, self.n - x.shape[-1]))
        with torch.autocast(x.device.type, enabled=False):
            return block_dft(padded, matrices=matrices)


class LearnedButterfly(nn.Module):
    """In the place of the convolution of up to `seq` steps: Re(F⁻¹ (F_u u ∘ F_k k)), F_u and F_k learned.

    Shapes: u (…, channels, L ≤ seq), kernel (copies, channels, lags ≤ seq) -> (…, copies, channels, L).
    Raises: ValueError for a longer signal or kernel, and on the CPU for a signal with NaN or infinity.
    """

    def __init__(
        self,
        seq: int,
        channels: int = 1,
        *,
        options: ButterflyOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        options = options or ButterflyOptions()
        self.seq, self.n = seq, block_length(2 * seq - 1)
        self.signal = LearnedTransform(self.n, channels, options, generator)
        self.kernel = LearnedTransform(self.n, channels, options, generator)

    def forward(
        self,
        u: Float[Tensor, "*batch channels seq"],
        kernel: Float[Tensor, "copies channels lags"],
        backward_kernel: Float[Tensor, "copies channels lags"] | None = None,
    ) -> Float[Tensor, "*batch copies channels seq"]:
        for name, each in (("u", u), ("kernel", kernel)):
            if each.shape[-1] > self.seq:
                raise ValueError(f"{name} has {each.shape[-1]} steps; this transform takes up to {self.seq}")
        if backward_kernel is not None:
            # What looks ahead lies at the end of the period, last lag first.
            ahead = backward_kernel[..., : self.n - kernel.shape[-1]].flip(-1)
            gap = self.n - kernel.shape[-1] - ahead.shape[-1]
            kernel = torch.cat([F.pad(kernel, (0, gap)), ahead], dim=-1)
        spectrum = self.signal(u)
        check_finite(spectrum)
        product = spectrum.unsqueeze(-3) * self.kernel(kernel)
        return block_inverse_dft(product).real[..., : u.shape[-1]].to(u.dtype)
