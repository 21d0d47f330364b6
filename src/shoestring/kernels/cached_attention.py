"""Attention of new tokens over a KV cache that holds them already, by the loops of the decode step.

A few tokens share out the cache in pieces; many are taken in blocks of queries. Keys and values may be stored
in float32, bfloat16 or float16, or in codes of 8, 4 or 2 bits (`TokenCacheFormat`), each in its own width.
"""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.kernels.costs import count_cost
from shoestring.kernels.dense_linear import FLAGS, STORAGE_KINDS
from shoestring.kernels.linear_kernel import aligned_room
from shoestring.kernels.native import load_library
from shoestring.numbers.token_cache_format import TOKEN_BITS, decode_rows

CODE_KINDS = {8: 3, 4: 4, 2: 5}
"""Codes by their width, as numbered in `cache_rows.h`."""


class CacheRows(ctypes.Structure):
    """`cache_rows` of cache_rows.h."""

    _fields_ = (("rows", ctypes.c_void_p), ("grids", ctypes.c_void_p), ("kind", ctypes.c_int64))


class AttentionShape(ctypes.Structure):
    """`attention_shape` of attention_shape.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("heads", "kv_heads", "head_dim", "tokens", "start", "window", "capacity")
        ),
        ("blocks", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("keys", CacheRows),
        ("values", CacheRows),
        ("rounded", ctypes.c_int64),
    )


@dataclass(frozen=True)
class StoredRows:
    """The keys or the values of one layer: rows (kv_heads, capacity, head_dim) of a type in `STORAGE_KINDS`,
    or packed codes (kv_heads, capacity, bytes) uint8 with grids (kv_heads, capacity, 2) float16; contiguous.
    In blocks: (blocks · kv_heads, slots of a block, …).

    Raises: ValueError or TypeError for tensors that do not go together, or widths without a kernel.
    """

    rows: Tensor
    head_dim: int
    grids: Tensor | None = None

    def __post_init__(self) -> None:
        heads, capacity, width = self.rows.shape
        if self.grids is None:
            if self.rows.dtype not in STORAGE_KINDS or width != self.head_dim:
                raise TypeError(
                    f"rows {tuple(self.rows.shape)} of {self.rows.dtype} hold no numbers of heads of "
                    f"{self.head_dim} channels; use one of {list(STORAGE_KINDS)}, or give grids with codes."
                )
            return
        if self.bits not in CODE_KINDS or width % 16 or self.rows.dtype != torch.uint8:
            raise ValueError(
                f"codes {tuple(self.rows.shape)} of {self.rows.dtype} are not {self.head_dim} channels of 8, "
                "4 or 2 bits in whole runs of 16 bytes; use another width or 16 bits."
            )
        if self.grids.shape != (heads, capacity, 2) or self.grids.dtype != torch.float16:
            raise ValueError(
                f"grids {tuple(self.grids.shape)} of {self.grids.dtype} must be {(heads, capacity, 2)} of "
                "torch.float16."
            )

    @property
    def bits(self) -> int:
        """Bits of a number or code."""
        return 8 * self.rows.shape[2] * self.rows.element_size() // self.head_dim

    @property
    def row_bytes(self) -> int:
        """Bytes of a token of one head, its grid included."""
        parts = [self.rows] if self.grids is None else [self.rows, self.grids]
        return sum(part.shape[2] * part.element_size() for part in parts)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token, all heads and grids included."""
        return self.rows.shape[0] * self.row_bytes

    @property
    def struct(self) -> CacheRows:
        """For C; good as long as the tensors are."""
        if self.grids is None:
            return CacheRows(self.rows.data_ptr(), None, STORAGE_KINDS[self.rows.dtype])
        return CacheRows(self.rows.data_ptr(), self.grids.data_ptr(), CODE_KINDS[self.bits])

    def numbers(self) -> Float[Tensor, "heads capacity dim"]:
        """What is stored, float32."""
        if self.grids is None:
            return self.rows.float()
        return decode_rows(self.rows, self.grids, self.bits, self.head_dim)


def empty_rows(kv_heads: int, capacity: int, head_dim: int, bits: int) -> StoredRows:
    """Rows of zeros in float16 (16 bits) or codes. Raises: ValueError for widths that do not fit."""
    if bits not in TOKEN_BITS:
        raise ValueError(f"bits={bits} is not a width of cached keys and values; use 16, 8, 4 or 2.")
    if bits == 16:
        return StoredRows(torch.zeros(kv_heads, capacity, head_dim, dtype=torch.float16), head_dim)
    if head_dim * bits % 128:
        raise ValueError(
            f"heads of {head_dim} channels in {bits} bits fill no whole runs of 16 bytes; use a multiple of "
            f"{128 // bits} channels, or 16 bits."
        )
    codes = torch.zeros(kv_heads, capacity, head_dim * bits // 8, dtype=torch.uint8)
    return StoredRows(codes, head_dim, torch.zeros(kv_heads, capacity, 2, dtype=torch.float16))


def store_rows(to: StoredRows, x: Float[Tensor, "heads count dim"], first: int) -> None:
    """Write rows from slot `first` on, as the decode step does.

    Raises: ValueError where they are beyond the room, or codes cannot hold them; NoCompiler.
    """
    heads, capacity, _ = to.rows.shape
    if x.shape[0] != heads or x.shape[2] != to.head_dim or not 0 <= first <= first + x.shape[1] <= capacity:
        raise ValueError(f"rows {tuple(x.shape)} from slot {first} on do not fit {tuple(to.rows.shape)}.")
    x = x.float().contiguous()
    stored = _library().store_rows(
        ctypes.byref(to.struct), x.data_ptr(), heads, capacity, first, x.shape[1], to.head_dim
    )
    if not stored:
        raise ValueError(f"a key or value is not finite or beyond ±65504; {to.bits} bits cannot store it.")


class CachedAttention:
    """Attention over the caches of some layers, one after the other in one call, as in a decode step.

    layers: keys and values of each, all of the same sizes. window: how many positions a token sees, itself
    included; None: all. rounded: many tokens at once may round what they multiply to bfloat16, as they do on
    a processor with matrix tiles.

    Raises: ValueError where sizes do not go together.
    """

    def __init__(
        self,
        layers: Sequence[tuple[StoredRows, StoredRows]],
        heads: int,
        scale: float,
        window: int | None = None,
        rounded: bool = False,
    ) -> None:
        if not layers or (window is not None and window < 1):
            raise ValueError(f"{len(layers)} layers, window={window}: both must be 1 or more.")
        first = layers[0][0]
        kv_heads, self.capacity, _ = first.rows.shape
        for keys, values in layers:
            sizes = {(*rows.rows.shape[:2], rows.head_dim) for rows in (keys, values, first)}
            if len(sizes) > 1 or heads % kv_heads:
                raise ValueError(
                    f"{heads} heads of queries, keys and values of {sorted(sizes)} heads, slots and "
                    "channels do not go together: sizes must be equal, heads a multiple of key-value heads."
                )
        self.layers, self.heads, self.head_dim = tuple(layers), heads, first.head_dim
        self._library = _library()
        self._shapes = (AttentionShape * len(layers))()
        for shape, (keys, values) in zip(self._shapes, layers, strict=True):
            shape.heads, shape.kv_heads, shape.head_dim = heads, kv_heads, first.head_dim
            shape.window, shape.capacity, shape.scale = window or 0, self.capacity, scale
            shape.keys, shape.values, shape.rounded = keys.struct, values.struct, int(rounded)

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token in all layers, grids included."""
        return sum(rows.token_bytes for layer in self.layers for rows in layer)

    def __call__(
        self, q: Float[Tensor, "layers tokens heads dim"], start: int, threads: int | None = None
    ) -> Float[Tensor, "layers tokens heads dim"]:
        """Attention of tokens at slots and positions start, start + 1, …: each sees itself and those before.

        threads: default torch's. Raises: ValueError where the queries do not fit the caches.
        """
        layers, tokens, heads, dim = q.shape
        if (layers, heads, dim) != (len(self.layers), self.heads, self.head_dim):
            raise ValueError(
                f"queries {tuple(q.shape)} must be of {len(self.layers)} layers and {self.heads} heads of "
                f"{self.head_dim} channels."
            )
        if not tokens or not 0 <= start <= start + tokens <= self.capacity:
            raise ValueError(f"{tokens} tokens from slot {start}: the cache has {self.capacity} slots.")
        for shape in self._shapes:
            shape.tokens, shape.start = tokens, start
        threads, shapes = threads or torch.get_num_threads(), ctypes.addressof(self._shapes)
        ordered, out = q.float().contiguous().clone(), torch.empty(q.shape)
        room = aligned_room(self._library.cached_attention_room(shapes, threads))
        slots = start + tokens
        flops = 4 * layers * tokens * heads * dim * slots
        with count_cost("cached_attention", flops=flops, bytes=slots * self.token_bytes + 2 * out.nbytes):
            self._library.cached_attention(
                shapes, layers, ordered.data_ptr(), room.data_ptr(), out.data_ptr(), threads
            )
        return out


def cached_attention(
    q: Float[Tensor, "tokens heads dim"],
    keys: StoredRows,
    values: StoredRows,
    start: int,
    scale: float,
    window: int | None = None,
    threads: int | None = None,
    rounded: bool = False,
) -> Float[Tensor, "tokens heads dim"]:
    """`CachedAttention` of one layer, once. Raises: as it does."""
    return CachedAttention([(keys, values)], q.shape[1], scale, window, rounded)(q[None], start, threads)[0]


def naive_cached_attention(
    q: Float[Tensor, "tokens heads dim"],
    keys: StoredRows,
    values: StoredRows,
    start: int,
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "tokens heads dim"]:
    """The same by its definition, in float64: softmax(scale · q kᵀ) v over what each token sees."""
    group = q.shape[1] // keys.rows.shape[0]
    k, v = (rows.numbers().double().repeat_interleave(group, 0) for rows in (keys, values))
    scores = scale * torch.einsum("thd,hsd->ths", q.double(), k)
    slot, position = torch.arange(k.shape[1]), start + torch.arange(q.shape[0])[:, None]
    seen = (slot <= position) & (slot > position - (window or k.shape[1] + 1))
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return torch.einsum("ths,hsd->thd", weights, v.masked_fill(~seen.any(0)[:, None], 0))


@functools.cache
def _library(flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    library = load_library(Path(__file__).with_suffix(".c"), extra_flags=FLAGS + flags)
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.cached_attention.argtypes = [pointer, size, pointer, pointer, pointer, number]
    library.cached_attention.restype = None
    library.cached_attention_room.argtypes = [pointer, number]
    library.cached_attention_room.restype = size
    library.store_rows.argtypes = [pointer, pointer, size, size, size, size, size]
    library.store_rows.restype = number
    return library
