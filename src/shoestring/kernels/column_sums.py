"""Attention that keys get from some rows, compiled: sums of softmax probabilities by column, without output.

a_j = Σ over rows i and the query heads of a KV head of exp(s_ij) / Σ_j' exp(s_ij'), s_ij = scale · q_i·k_j
over the keys that row i sees: at its own position and before.

Source: He et al. 2024, "ZipVL", section 4.1 (probe rows); Zhang et al. 2023, "H2O", section 3 (the sums).
"""

import ctypes
import functools
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.kernels.costs import count_cost
from shoestring.kernels.linear_kernel import aligned_room
from shoestring.kernels.native import load_library

FLAGS = ("-ffp-contract=fast",)
"""Products are fused with sums."""


class _Shape(ctypes.Structure):
    """`column_shape` of column_sums.c."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("heads", "kv_heads", "rows", "slots", "head_dim", "window", "key_head", "key_row")
        ),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("queries", "keys", "row_positions", "key_positions")),
    )


def compiled_column_sums(
    q: Float[Tensor, "heads rows dim"],
    k: Float[Tensor, "kv_heads slots dim"],
    row_pos: Int[Tensor, " _rows"],
    key_pos: Int[Tensor, " _slots"],
    scale: float,
    window: int | None = None,
    threads: int | None = None,
) -> tuple[Float[Tensor, "kv_heads slots"], Int[Tensor, " slots"]]:
    """a, float32, and how many rows may see each key, of float32 on the CPU; no gradient flows.

    window: a row sees its own position and the window − 1 before it. threads: torch's by default; results do
    not depend on them.
    Raises: ValueError for a row that sees no key, or sizes that do not go together; TypeError for another
    type or device; NoCompiler.
    """
    _check(q, k, row_pos, key_pos, window)
    threads = torch.get_num_threads() if threads is None else threads
    q = q.detach()
    # Rows close in time share a block, and a block reads no key behind its newest row.
    if bool((row_pos.diff() < 0).any()):
        order = row_pos.argsort(stable=True)
        q, row_pos = q[:, order], row_pos[order]
    q = q.contiguous()
    k = k.detach() if k.stride(2) == 1 else k.detach().contiguous()
    rows_at, keys_at = row_pos.int().contiguous(), key_pos.int().contiguous()
    counts, out = rows_that_see(rows_at, keys_at, window), q.new_zeros(k.shape[:2])
    if not q.shape[1]:
        return out, counts
    if not k.shape[1]:
        raise ValueError("a row sees no key; its own must be among them.")
    shape = _Shape(
        q.shape[0], k.shape[0], q.shape[1], k.shape[1], q.shape[2], window or 0, k.stride(0), k.stride(1),
        scale, q.data_ptr(), k.data_ptr(), rows_at.data_ptr(), keys_at.data_ptr(),
    )  # fmt: skip
    library = _library()
    room = aligned_room(library.column_sums_room(ctypes.byref(shape), threads))
    flops = 2 * q.shape[0] * q.shape[2] * int(counts.sum())
    with count_cost("column_sums", flops=flops, bytes=q.nbytes + k.nbytes + out.nbytes):
        blind = library.column_sums(ctypes.byref(shape), room.data_ptr(), out.data_ptr(), threads)
    if blind:
        raise ValueError("a row sees no key; its own must be among them.")
    return out, counts


def rows_that_see(
    row_pos: Int[Tensor, "*batch rows"], key_pos: Int[Tensor, "*batch slots"], window: int | None = None
) -> Int[Tensor, "*batch slots"]:
    """c_j: how many of the rows, whose positions ascend, may see each key."""
    before = torch.searchsorted(row_pos, key_pos)
    if window is None:
        return row_pos.shape[-1] - before
    return torch.searchsorted(row_pos, key_pos + window) - before


def naive_column_sums(
    q: Float[Tensor, "heads rows dim"],
    k: Float[Tensor, "kv_heads slots dim"],
    row_pos: Int[Tensor, " rows"],
    key_pos: Int[Tensor, " slots"],
    scale: float,
    window: int | None = None,
) -> tuple[Float[Tensor, "kv_heads slots"], Int[Tensor, " slots"]]:
    """The same by its definition, in float64, every probability at once."""
    behind = row_pos[:, None] - key_pos
    seen = (behind >= 0) & (behind < (window or int(behind.max()) + 1))
    keys = k.double().repeat_interleave(q.shape[0] // k.shape[0], 0)
    scores = scale * q.double() @ keys.transpose(1, 2)
    p = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return p.unflatten(0, (k.shape[0], -1)).sum((1, 2)), seen.sum(0)


def _check(q: Tensor, k: Tensor, row_pos: Tensor, key_pos: Tensor, window: int | None) -> None:
    if q.shape[0] % k.shape[0]:
        raise ValueError(f"{q.shape[0]} query heads are no multiple of {k.shape[0]} KV heads.")
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be 1 or more.")
    if len(row_pos) != q.shape[1] or len(key_pos) != k.shape[1] or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"q {tuple(q.shape)} at {len(row_pos)} positions and k {tuple(k.shape)} at {len(key_pos)} do not "
            "go together; give a position for each row and slot, and heads of one size."
        )
    for name, x in (("q", q), ("k", k)):
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise TypeError(f"{name} is {x.dtype} on {x.device}; the compiled loop takes float32 on the CPU.")


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library(Path(__file__).with_suffix(".c"), extra_flags=FLAGS)
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.column_sums.argtypes = [pointer, pointer, pointer, number]
    library.column_sums_room.argtypes = [pointer, number]
    library.column_sums.restype = library.column_sums_room.restype = ctypes.c_int64
    return library
