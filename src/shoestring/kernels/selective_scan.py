"""The selective scan of Mamba: a linear recurrence whose step and inputs depend on what is read.

For channel e with state n:  d_t = softplus(dt_t + dt_bias),  h_t = exp(d_t A) h_{t-1} + d_t x_t B_t,
y_t = C_t h_t + D x_t,  y_t <- y_t SiLU(z_t).  B and C are shared by groups of channels: one group in Mamba,
one for every head where attention was turned into a scan.

The state and every exponential are float32 (float64 where x is), whatever x is. What is kept for the gradient
is the inputs and the states between chunks; the others are computed again, never held all at once.

Source: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", eq. 2-4,
algorithm 2, section 3.3.2.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shoestring.errors import NoCompiler
from shoestring.kernels import selective_scan_compiled as compiled
from shoestring.kernels.costs import Cost, states_cost
from shoestring.kernels.selective_scan_inputs import ScanInputs, ScanOptions
from shoestring.kernels.selective_scan_torch import ChunkedScan
from shoestring.notices import notice_fallback

Sequence = Float[Tensor, "batch seq channels"]
Grouped = Float[Tensor, "_batch _seq _groups states"]
PerChannel = Float[Tensor, "_channels"]
ScanState = Float[Tensor, "_batch _channels _states"]


def naive_selective_scan(
    x: Sequence,
    dt: Sequence,
    A: Float[Tensor, "_channels states"],
    B: Grouped,
    C: Grouped,
    D: PerChannel | None = None,
    z: Sequence | None = None,
    dt_bias: PerChannel | None = None,
    initial: ScanState | None = None,
    *,
    dt_softplus: bool = False,
    reverse: bool = False,
) -> tuple[Sequence, ScanState]:
    """The equations, position after position. Arguments as in `selective_scan`."""
    batch, seq, channels = x.shape
    d = dt if dt_bias is None else dt + dt_bias
    d = F.softplus(d, threshold=float("inf")) if dt_softplus else d
    B, C = (part.repeat_interleave(channels // part.shape[2], 2) for part in (B, C))
    h = x.new_zeros(batch, *A.shape) if initial is None else initial
    gates = None if z is None else F.silu(z).unbind(1)
    xs, ds, Bs, Cs = (part.unbind(1) for part in (x, d, B, C))
    ys = list(xs)
    for t in reversed(range(seq)) if reverse else range(seq):
        h = (ds[t][..., None] * A).exp() * h + (ds[t] * xs[t])[..., None] * Bs[t]
        y = (h * Cs[t]).sum(-1)
        y = y if D is None else y + D * xs[t]
        ys[t] = y if gates is None else y * gates[t]
    return torch.stack(ys, 1), h


def _cost(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Tensor | None, **others: object
) -> Cost:
    """An exponential counts as one operation: 6 for each state, 4 for each channel."""
    given = [part for part in (x, dt, A, B, C, *rest, *others.values()) if isinstance(part, Tensor)]
    return Cost(x.numel() * (6 * A.shape[1] + 4), sum(part.nbytes for part in given) + x.nbytes)


@states_cost(_cost)  # type: ignore[arg-type]
def selective_scan(
    x: Sequence,
    dt: Sequence,
    A: Float[Tensor, "_channels states"],
    B: Grouped,
    C: Grouped,
    D: PerChannel | None = None,
    z: Sequence | None = None,
    dt_bias: PerChannel | None = None,
    initial: ScanState | None = None,
    *,
    dt_softplus: bool = False,
    reverse: bool = False,
) -> tuple[Sequence, ScanState]:
    """y (in the type of x) and the last state (batch, channels, states), in float32 or float64.

    A: not above 0. B, C: (batch, seq, groups, states), with numbers of groups that divide the channels; the
    larger is a multiple of the smaller. D, z, dt_bias: left out where None. initial: the state before the
    first position, by default 0. reverse: from the last position to the first.

    On the CPU a compiled loop answers, forward and backward; for other devices, float64, or without a
    compiler torch scans chunks of positions, which is said once.

    Raises: ValueError for shapes that do not belong together, an A above 0 (on the CPU), an
    empty sequence; TypeError for an initial state in half precision or tensors on several devices.
    """
    inputs = ScanInputs(x, dt, A, B, C, D, z, dt_bias, initial)
    options = ScanOptions(dt_softplus, reverse)
    inputs.check()
    if (reason := _why_torch(x, A)) is None:
        wide = inputs.to(torch.float32)
        wanted = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in wide)
        y, last = compiled.CompiledScan.apply(options, wanted, *wide)
    else:
        notice_fallback("selective_scan", reason)
        wide = inputs.to(torch.promote_types(x.dtype, torch.float32))
        y, last = ChunkedScan.apply(options, *wide)
    return y.to(x.dtype), last


def selective_step(
    x: Float[Tensor, "batch channels"],
    dt: Float[Tensor, "batch channels"],
    A: Float[Tensor, "_channels states"],
    B: Float[Tensor, "batch _groups states"],
    C: Float[Tensor, "batch _groups states"],
    state: ScanState,
    D: PerChannel | None = None,
    z: Float[Tensor, "batch channels"] | None = None,
    dt_bias: PerChannel | None = None,
    *,
    dt_softplus: bool = False,
) -> tuple[Float[Tensor, "batch channels"], ScanState]:
    """One position of `selective_scan` after `state`; arguments without the axis of positions."""
    y, last = selective_scan(
        x[:, None], dt[:, None], A, B[:, None], C[:, None], D, None if z is None else z[:, None], dt_bias,
        state, dt_softplus=dt_softplus,
    )  # fmt: skip
    return y[:, 0], last


def _why_torch(x: Tensor, A: Tensor) -> str | None:
    """Why the compiled loop cannot do it; None where it can."""
    if x.device.type != "cpu":
        return f"torch scans chunks on {x.device}: the compiled loop is for CPUs"
    if x.dtype == torch.float64:
        return "torch scans chunks for float64: the compiled loop computes in float32"
    if A.shape[1] > compiled.MOST_STATES:
        return f"torch scans chunks: {A.shape[1]} states are above {compiled.MOST_STATES}"
    try:
        compiled.library()
    except NoCompiler as error:
        return f"torch scans chunks instead of the compiled loop ({error})"
    return None
