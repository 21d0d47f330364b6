"""A long convolution in three passes over the sequence, however long it is.

The sequence of N = m·l points is read as m rows. One pass makes of it m rows that can be convolved apart,
each short enough to stay on chip; the last pass puts them together. A fast transform that goes through memory
at each of its levels makes log₂ N passes.

    U = (F_m · u.view(m, l)) ∘ T,   Y[r] = IFFT_l(FFT_l(U[r]) ∘ K̂[r]),   y = Re(F_mᴴ/m · (Y ∘ T̄))

For real u, U[m−r, j] = exp(−2πi j/l) · conj(U[r, j]), and Y alike, so that rows 0 … ⌊m/2⌋ say all.

Source: Fu et al. 2023, "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", section 3.2 and
appendix C; the relation between the rows is our own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from shoestring.kernels.block_dft import block_dft, block_inverse_dft, block_length, dft_matrix, twiddles

LARGEST_ROW = 8192
"""Complex points that fit on chip."""

Transform = Callable[[Tensor], Tensor]


@dataclass
class PassTraffic:
    """How often passes read and write a buffer that is as long as the sequence, and how many bytes."""

    reads: int = 0
    writes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def run(self, one_pass: Callable[[Tensor], Tensor], buffer: Tensor) -> Tensor:
        """`one_pass(buffer)`, counted as one read of its argument and one write of its result."""
        result = one_pass(buffer)
        self.reads, self.writes = self.reads + 1, self.writes + 1
        self.bytes_read += buffer.numel() * buffer.element_size()
        self.bytes_written += result.numel() * result.element_size()
        return result


@dataclass(frozen=True, kw_only=True)
class ThreePassPlan:
    """N = rows · row_length. `half_rows` leaves out the rows that follow from the others.

    `transform` and `inverse` are those of a row; torch's by default, which take rows of any length, and
    `block_dft` with its inverse for rows of a power of two.
    Raises: ValueError for fewer than one row or a row without points.
    """

    rows: int
    row_length: int
    half_rows: bool = True
    transform: Transform = field(default=torch.fft.fft)
    inverse: Transform = field(default=torch.fft.ifft)

    def __post_init__(self) -> None:
        for name in ("rows", "row_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def n(self) -> int:
        """Points of the circular convolution."""
        return self.rows * self.row_length

    @property
    def computed_rows(self) -> int:
        return self.rows // 2 + 1 if self.half_rows else self.rows

    @classmethod
    def of_blocks(cls, seq: int, lags: int, *, largest_row: int = LARGEST_ROW) -> "ThreePassPlan":
        """Rows as long as fit on chip, transformed by small matrices, for a causal convolution."""
        n = block_length(seq + lags - 1)
        row_length = min(n, block_length(largest_row))
        return cls(
            rows=n // row_length, row_length=row_length, transform=block_dft, inverse=block_inverse_dft
        )


def three_pass_convolve(
    u: Float[Tensor, "*batch channels seq"],
    kernel: Float[Tensor, "channels lags"],
    plan: ThreePassPlan,
    *,
    traffic: PassTraffic | None = None,
) -> Float[Tensor, "*batch channels seq"]:
    """y[t] = Σ_{s=0..t} kernel[s] u[t−s], by the plan. What the passes move is added to `traffic`.

    On a CPU `fft_convolve` is faster: its library keeps to the caches by itself.
    Raises: ValueError for a plan with fewer points than seq + lags − 1, where the end would wrap around.
    """
    needed = u.shape[-1] + kernel.shape[-1] - 1
    if plan.n < needed:
        raise ValueError(
            f"rows={plan.rows} of row_length={plan.row_length} are {plan.n} points; "
            f"{u.shape[-1]} steps and {kernel.shape[-1]} lags need {needed}"
        )
    traffic = PassTraffic() if traffic is None else traffic
    spectra = row_spectra(kernel, plan)
    u_padded = torch.nn.functional.pad(u, (0, plan.n - u.shape[-1]))
    parted = traffic.run(lambda x: split_rows(x, plan), u_padded)
    convolved = traffic.run(lambda x: plan.inverse(plan.transform(x) * spectra), parted)
    return traffic.run(lambda x: join_rows(x, plan), convolved)[..., : u.shape[-1]]


def split_rows(x: Float[Tensor, "*batch n"], plan: ThreePassPlan) -> Complex[Tensor, "*batch rows points"]:
    """The first pass: U = (F_m · x.view(m, l)) ∘ T, the rows that are computed."""
    factor, twiddle = _tables(x, plan)
    x = x.unflatten(-1, (plan.rows, plan.row_length))
    return torch.complex(factor.real @ x, factor.imag @ x) * twiddle


def row_spectra(
    kernel: Float[Tensor, "channels lags"], plan: ThreePassPlan
) -> Complex[Tensor, "channels rows points"]:
    """K̂[r] = FFT_l of the rows of the kernel: made once for each kernel."""
    padded = torch.nn.functional.pad(kernel, (0, plan.n - kernel.shape[-1]))
    return plan.transform(split_rows(padded, plan))


def join_rows(rows: Complex[Tensor, "*batch rows points"], plan: ThreePassPlan) -> Float[Tensor, "*batch n"]:
    """The last pass: y = Re(F_mᴴ/m · (rows ∘ T̄)); a row that stands for two counts twice."""
    factor, twiddle = _tables(rows, plan)
    weights = torch.full((plan.computed_rows, 1), 1 / plan.rows, dtype=factor.real.dtype, device=rows.device)
    if plan.half_rows:
        weights[1 : (plan.rows + 1) // 2] *= 2
    rows = rows * twiddle.conj() * weights
    back = factor.mT
    return (back.real @ rows.real + back.imag @ rows.imag).flatten(-2)


def _tables(like: Tensor, plan: ThreePassPlan) -> tuple[Tensor, Tensor]:
    """The computed rows of F_m and of T."""
    dtype = torch.promote_types(like.dtype, torch.complex64)
    factor = dft_matrix(plan.rows, dtype, like.device)
    twiddle = twiddles(plan.rows, plan.row_length, dtype, like.device)
    return factor[: plan.computed_rows], twiddle[: plan.computed_rows]
