"""A sequence layer that is one long convolution with freely learned kernels, regularised in each pass.

y[b, c, h, t] = Σ_{s=0..t} K̃[c, h, s] u[b, h, t−s] + D[c, h] u[b, h, t]; then GELU, dropout, a linear map of
all c·h to 2h, and a gated linear unit.

Source: Fu et al. 2023, "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", section 3, and
the authors' code for what surrounds the convolution.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.fft_convolution import KernelSpectrum, fft_convolve, kernel_spectrum
from shoestring.kernels.spectrum_cache import SpectrumCache, may_keep_spectrum
from shoestring.layers.long_convolution.learned_butterfly import ButterflyOptions, LearnedButterfly
from shoestring.layers.long_convolution.squash import KernelInit, KernelRegulariser, LongKernel, random_kernel
from shoestring.layers.parameter_hint import ParameterHint

NO_REGULARISER = KernelRegulariser()


class LongFilter(nn.Module):
    """`copies` learned filters for each channel, with the skip D: the convolution alone.

    Shapes: u (…, channels, L ≤ kernel_length) -> (…, copies, channels, L). With `bidirectional` there are
    two kernels each, and the second looks ahead, starting one step ahead.
    `kernel_learning_rate` is what the kernels ask of the trainer; they want no weight decay, which would push
    taps into the dead zone of the squash, out of which no gradient leads.
    Raises: ValueError for sizes below 1 or a regulariser that leaves nothing of the kernel; in use, for a
    sequence longer than the kernel.
    """

    def __init__(
        self,
        channels: int,
        kernel_length: int,
        *,
        copies: int = 1,
        bidirectional: bool = False,
        regulariser: KernelRegulariser = NO_REGULARISER,
        init: KernelInit = random_kernel,
        kernel_learning_rate: float | None = 1e-3,
        butterfly: ButterflyOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("channels", channels), ("kernel_length", kernel_length), ("copies", copies)):
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        self.copies, self.bidirectional, self.regulariser = copies, bidirectional, regulariser
        directions = 2 if bidirectional else 1
        self.kernel = nn.Parameter(init((directions * copies, channels, kernel_length), generator))
        self.skip = nn.Parameter(torch.randn(copies, channels, generator=generator))
        self.parameter_hints = {"kernel": ParameterHint(learning_rate=kernel_learning_rate, weight_decay=0.0)}
        self.butterfly = (
            LearnedButterfly(kernel_length, channels, options=butterfly, generator=generator)
            if butterfly
            else None
        )
        self._spectra = SpectrumCache()
        self.regularised_kernels()

    @property
    def is_causal(self) -> bool:
        """Whether an output depends on no later input."""
        return not self.bidirectional and self.butterfly is None

    def regularised_kernels(self) -> tuple[LongKernel, LongKernel | None]:
        """The kernels to convolve with, back and ahead (if bidirectional), each (copies, channels, lags).

        Raises: as `KernelRegulariser`.
        """
        kernel = self.kernel.to(torch.promote_types(self.kernel.dtype, torch.float32))
        kernel = self.regulariser(kernel, training=self.training)
        return (kernel[: self.copies], kernel[self.copies :]) if self.bidirectional else (kernel, None)

    def forward(self, u: Float[Tensor, "*batch channels seq"]) -> Float[Tensor, "*batch copies channels seq"]:
        self._check_length(u.shape[-1])
        if self.butterfly is not None:
            skipped = self.skip[..., None] * u.unsqueeze(-3)
            return (self.butterfly(u, *self.regularised_kernels()) + skipped).to(u.dtype)
        if may_keep_spectrum(self.training):
            seq = u.shape[-1]
            spectrum = self._spectra.get([self.kernel], seq, lambda: self._spectrum(seq), self.regulariser)
            return fft_convolve(u, spectrum, skip=self.skip)
        kernel, ahead = self.regularised_kernels()
        return fft_convolve(u, kernel, skip=self.skip, backward_kernel=ahead)

    def _spectrum(self, seq: int) -> KernelSpectrum:
        kernel, ahead = self.regularised_kernels()
        return kernel_spectrum(kernel, seq, backward_kernel=ahead)

    def _check_length(self, seq: int) -> None:
        if seq > (lags := self.kernel.shape[-1]):
            raise ValueError(
                f"the sequence has {seq} steps, the kernel {lags} lags: crop the sequence to its last {lags} "
                f"steps (x[:, -{lags}:]), or make the layer anew with kernel_length={seq}"
            )


class TiedDropout(nn.Module):
    """Leaves out whole channels of a sample, over all its time. Shapes: (batch, dim, seq) -> the same."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "batch dim seq"]) -> Float[Tensor, "batch dim seq"]:
        return F.dropout1d(x, self.p, self.training)


class LongConv(nn.Module):
    """The long-convolution layer. Shapes: (batch, seq ≤ kernel_length, d_model) -> the same.

    copies: filters of each feature (`channels` in the authors' code); 2 for classification, 1 in language
    models. causal: demand that no output depends on a later input. butterfly: learn the transforms.
    output_linear: a map from copies · d_model to 2 · d_model to use instead of a new one.
    Other arguments and errors are those of `LongFilter`.

    Raises: ValueError for causal with what looks ahead (bidirectional or butterfly), and for an output_linear
    of other sizes.
    """

    def __init__(
        self,
        d_model: int,
        kernel_length: int,
        *,
        copies: int = 2,
        causal: bool = False,
        bidirectional: bool = False,
        regulariser: KernelRegulariser = NO_REGULARISER,
        init: KernelInit = random_kernel,
        kernel_learning_rate: float | None = 1e-3,
        butterfly: ButterflyOptions | None = None,
        dropout: float = 0.0,
        tie_dropout: bool = True,
        output_linear: nn.Linear | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.filter = LongFilter(
            d_model,
            kernel_length,
            copies=copies,
            bidirectional=bidirectional,
            regulariser=regulariser,
            init=init,
            kernel_learning_rate=kernel_learning_rate,
            butterfly=butterfly,
            generator=generator,
        )
        if causal and not self.filter.is_causal:
            cause = "a bidirectional kernel" if bidirectional else "a learned butterfly along time"
            raise ValueError(
                f"causal=True, but {cause} lets outputs depend on later inputs; leave it out, or use "
                "FeatureLongConv, which mixes the features of one step"
            )
        self.dropout = TiedDropout(dropout) if tie_dropout else nn.Dropout(dropout)
        self.output_linear = _output_linear(output_linear, copies, d_model)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        y = F.gelu(self.filter(x.mT).flatten(-3, -2))
        return F.glu(self.output_linear(self.dropout(y).mT), dim=-1)


class FeatureLongConv(nn.Module):
    """The layer with learned transforms along the features of each token, in the place of an MLP.

    It takes copies · 2 d_model² weights where an MLP of four times the width takes 8 d_model². Tokens do not
    mix, so it is causal. Shapes: (batch, seq, d_model) -> the same.

    That the long convolution runs along the features, with one channel, is a reconstruction: the paper does
    not say in which axis and width it replaces the MLP (unconfirmed).
    Arguments and errors as `LongConv`.
    """

    def __init__(
        self,
        d_model: int,
        *,
        copies: int = 2,
        regulariser: KernelRegulariser = NO_REGULARISER,
        init: KernelInit = random_kernel,
        kernel_learning_rate: float | None = 1e-3,
        butterfly: ButterflyOptions | None = None,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.filter = LongFilter(
            1,
            d_model,
            copies=copies,
            regulariser=regulariser,
            init=init,
            kernel_learning_rate=kernel_learning_rate,
            butterfly=butterfly or ButterflyOptions(),
            generator=generator,
        )
        self.dropout = nn.Dropout(dropout)
        self.output_linear = _output_linear(None, copies, d_model)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        # The filter is linear in each token. Its matrix costs as much as d_model tokens, and one product
        # with it is faster than transforming each of many tokens by itself.
        many = x.shape[0] * x.shape[1] > self.d_model
        y = self._by_matrix(x) if many else self._by_transform(x)
        return F.glu(self.output_linear(self.dropout(F.gelu(y))), dim=-1)

    def _by_transform(self, x: Tensor) -> Tensor:
        return self.filter(x.unsqueeze(-2)).flatten(-3)

    def _by_matrix(self, x: Tensor) -> Tensor:
        units = torch.eye(self.d_model, dtype=self.filter.kernel.dtype, device=x.device)
        return x @ self._by_transform(units).to(x.dtype)


def _output_linear(given: nn.Linear | None, copies: int, d_model: int) -> nn.Linear:
    if given is None:
        return nn.Linear(copies * d_model, 2 * d_model)
    if (given.in_features, given.out_features) != (copies * d_model, 2 * d_model):
        raise ValueError(
            f"output_linear maps {given.in_features} to {given.out_features} features; {copies} copies of "
            f"d_model={d_model} need {copies * d_model} to {2 * d_model}"
        )
    return given
