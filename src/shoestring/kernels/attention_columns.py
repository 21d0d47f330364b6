"""Attention of short sequences with the sum of each column of its probabilities over heads and rows.

p_hij = exp(scale · q_hi·k_hj) / Σ_j' exp(scale · q_hi·k_hj') over the tokens that are there;
out_hi = Σ_j p_hij v_hj; s_j = Σ over heads h and present rows i of p_hij. Every row sees every present token.

Source: Wang et al. 2021, "SpAtten", section III-A (the sums rank tokens).
"""

import ctypes
import functools
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import Cost, states_cost
from shoestring.kernels.native import load_library
from shoestring.notices import notice_fallback

Tokens = Float[Tensor, "batch n heads dim"]
Like = Float[Tensor, "_batch _n _heads _dim"]
Result = tuple[Float[Tensor, "batch n heads dim"], Float[Tensor, "batch n"]]

_SIZES = ("samples", "n", "heads", "dim", "threads", "q_row", "k_row", "v_row")
_POINTERS = ("q", "k", "v", "present", "out", "sums")


class _Arguments(ctypes.Structure):
    """The C struct `columns`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


def naive_attention_columns(
    q: Tokens, k: Tokens, v: Tokens, scale: float, present: Bool[Tensor, "batch n"] | None = None
) -> Result:
    """The equations: the meaning of `attention_columns`."""
    scores = scale * torch.einsum("bihd,bjhd->bhij", q, k)
    if present is None:
        present = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device)
    p = scores.masked_fill(~present[:, None, None], -torch.inf).softmax(-1)
    sums = torch.einsum("bhij,bi->bj", p, present.to(p.dtype))
    return torch.einsum("bhij,bjhd->bihd", p, v), sums


def _cost(q: Tensor, k: Tensor, v: Tensor, scale: float, present: Tensor | None = None) -> Cost:
    """Two products of all rows with all tokens."""
    batch, n, heads, dim = q.shape
    return Cost(4 * batch * heads * n * n * dim, sum(t.nbytes for t in (q, k, v, q)) + batch * n * 4)


@states_cost(_cost)
def attention_columns(
    q: Tokens, k: Like, v: Like, scale: float, present: Bool[Tensor, "_batch _n"] | None = None
) -> Result:
    """(out, s). present: the tokens that are there, at least one a sample (None: all).

    In float32 on the CPU a compiled loop does it, in which no gradient flows; else torch, sample by sample,
    with a notice. Results do not depend on the number of threads. Meant for hundreds of tokens: the scores of
    48 rows of a head exist at once.

    Raises: ValueError for shapes that differ, or a sample without tokens.
    """
    if not q.shape == k.shape == v.shape or (present is not None and present.shape != q.shape[:2]):
        shapes = [tuple(t.shape) for t in (q, k, v)]
        raise ValueError(f"q, k and v are {shapes}, present {present if present is None else present.shape}.")
    if not q.shape[1] or (present is not None and not bool(present.any(1).all())):
        raise ValueError("a sample has no token at all; give each at least one.")
    reason = _unfit(q, k, v)
    if reason is not None:
        notice_fallback("attention_columns", f"torch, a sample at a time, instead of {reason}")
        return by_samples(q, k, v, scale, present)
    batch, n, heads, dim = q.shape
    q, k, v = (_rows(t) for t in (q, k, v))
    out, sums = q.new_empty(batch, n, heads, dim), q.new_empty(batch, heads, n)
    shown = None if present is None else present.to(torch.float32).contiguous()
    arguments = _Arguments(
        samples=batch, n=n, heads=heads, dim=dim, threads=torch.get_num_threads(), scale=scale,
        q_row=q.stride(1), k_row=k.stride(1), v_row=v.stride(1),
        q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), present=None if shown is None else shown.data_ptr(),
        out=out.data_ptr(), sums=sums.data_ptr(),
    )  # fmt: skip
    if _library().attention_columns(ctypes.byref(arguments)):
        raise MemoryError(f"no memory for the scores of 48 rows over {n} tokens")
    return out, sums.sum(1)


def by_samples(
    q: Tokens, k: Tokens, v: Tokens, scale: float, present: Bool[Tensor, "batch n"] | None = None
) -> Result:
    """The same in torch, with gradients: the probabilities of one sample exist at once."""
    outs, sums = [], []
    for sample in range(len(q)):
        scores = (q[sample].transpose(0, 1) * scale) @ k[sample].permute(1, 2, 0)
        if present is not None:
            scores = scores.masked_fill(~present[sample], -torch.inf)
        p = scores.softmax(-1)
        outs.append((p @ v[sample].transpose(0, 1)).transpose(0, 1))
        rows = p.sum(0)
        sums.append(rows.sum(0) if present is None else present[sample].to(p.dtype) @ rows)
    return torch.stack(outs), torch.stack(sums)


def _unfit(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the compiled loop cannot do it."""
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (q, k, v)):
        return f"the compiled loop, which is for float32 on the CPU, not {q.dtype} on {q.device}"
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        return "the compiled loop, which gives no gradient"
    try:
        _library()
    except NoCompiler as error:
        return f"the compiled loop ({error})"
    return None


def _rows(t: Tensor) -> Tensor:
    """With the heads of a token side by side, and tokens at even distances through all samples."""
    _, n, _, dim = t.shape
    even = t.stride(3) == 1 and t.stride(2) == dim and t.stride(0) == n * t.stride(1)
    return t if even else t.contiguous()


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library(Path(__file__).with_suffix(".c"), extra_flags=("-ffp-contract=fast",))
    library.attention_columns.argtypes = [ctypes.c_void_p]
    library.attention_columns.restype = ctypes.c_int
    return library
