"""What all slot-based KV caches share: positions, marks, side tables, and the checks at the boundary.

How keys and values are stored is the business of a `LayerStore`; a cache is a list of them.
"""

import itertools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from shoestring.generation.slot_table import SlotTable
from shoestring.models.protocols import CacheCannot, KVView, Traffic

POS, TOKENS = "pos", "slot_tokens"


@runtime_checkable
class LayerStore(Protocol):
    """The slots of one layer: a table of what belongs to every slot, and the keys and values.

    Operations take what `SlotTable`'s namesakes take and keep keys and values in step with the table.
    """

    table: SlotTable

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of every tensor's storage, by part."""
        ...

    @property
    def read_bits(self) -> tuple[int, int]:
        """Bits that reading all keys, and all values, fetches from storage."""
        ...

    def append(self, k: Tensor, v: Tensor, pos: Tensor, store: Tensor | None) -> Tensor: ...

    def keys_values(self) -> tuple[Tensor, Tensor]: ...

    def gather(self, keep: Tensor) -> None: ...

    def truncate(self, counts: Tensor) -> None: ...

    def permute(self, start: Tensor, order: Tensor) -> None: ...

    def reorder(self, samples: Tensor) -> None: ...

    def clone(self) -> "LayerStore": ...


class Mark:
    """A state to which `rollback` returns; good until the cache is rolled back to an earlier one."""

    def __init__(self, number: int, next_pos: Tensor) -> None:
        self.number, self.next_pos = number, next_pos


class SideTables:
    """Per-layer tables that follow the slots through eviction, rollback and reordering: `side[name][layer]`.

    New slots hold the table's fill value; write through the tensor that is given, (batch, rows, slots, …).
    """

    def __init__(self, layers: Sequence[LayerStore]) -> None:
        self._layers = layers
        self._names: set[str] = set()

    def add(
        self,
        name: str,
        shape: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float32,
        *,
        per_head: bool = False,
        fill: int | float = 0,
    ) -> None:
        """A table of `shape` per slot, in every layer. Raises: ValueError if the name is taken."""
        for layer in self._layers:
            layer.table.add_column(name, shape, dtype, per_head=per_head, fill=fill)
        self._names.add(name)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> list[Tensor]:
        if name not in self._names:
            raise KeyError(f"no side table {name!r}; add it first (there are {sorted(self._names)}).")
        return [layer.table.read(name) for layer in self._layers]


class SlotCache:
    """A KV cache over layer stores; `DenseCache` and `QuantCache` are this with different stores.

    Raises: ValueError for shapes that do not fit, `CacheCannot` for what the stores cannot do.
    """

    def __init__(self, layers: list[LayerStore], n_kv_heads: int, head_dim: int) -> None:
        if not layers:
            raise ValueError("a cache needs at least one layer; n_layers must be 1 or more.")
        self.layers, self.n_kv_heads, self.head_dim = layers, n_kv_heads, head_dim
        table = layers[0].table
        self.next_pos: Int[Tensor, " batch"] = torch.zeros(table.batch, dtype=torch.long, device=table.device)
        self.side = SideTables(layers)
        self.traffic = Traffic()
        self._last_pos: Tensor | None = None
        self.permuted = False
        """Whether `compact` has put slots in an order of its caller's."""
        self._numbers = itertools.count()
        self._marks: WeakKeyDictionary[Mark, list[Tensor]] = WeakKeyDictionary()

    @property
    def exact_tokens(self) -> int | None:
        """How many new tokens a step may read back through a view; None: any number, none changes later."""
        return None

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.layers[0].table.batch

    def length(self, layer: int) -> Int[Tensor, " batch"]:
        """Slots held per sample in a layer (of the longest head, where heads differ)."""
        return self.layers[layer].table.counts.amax(1)

    def slot_tokens(self, layer: int) -> Int[Tensor, "batch rows slots"]:
        """How many tokens each slot of a layer stands for; write to it where a slot holds several."""
        table = self.layers[layer].table
        if TOKENS not in table.columns:
            table.add_column(TOKENS, (), torch.int32, per_head=False, fill=1)
        return table.read(TOKENS)

    def note_tokens(self, count: int) -> None:
        """Say that the last slot of every layer, of each sample and head, stands for `count` tokens."""
        for index, layer in enumerate(self.layers):
            tokens, table = self.slot_tokens(index), layer.table
            if table.uniform is not None:
                tokens[..., -1] = count
            else:
                last = (table.counts - 1).clamp(min=0)[..., None].expand(*tokens.shape[:2], 1)
                tokens.scatter_(2, last, count)

    def append(
        self,
        layer: int,
        k: Float[Tensor, "batch heads n dim"],
        v: Float[Tensor, "batch heads n dim"],
        pos: Int[Tensor, "batch n"],
        store: Bool[Tensor, "batch n"] | None = None,
    ) -> Int[Tensor, "batch n"] | Int[Tensor, "batch heads n"]:
        """Store keys (already rotated) and values of tokens at logical positions `pos`; their slots.

        store: which tokens to keep; the others count for `next_pos` only and get slot −1. Slots are per head
        where heads have different lengths. Raises: ValueError where shapes do not fit the cache.
        """
        expected = (self.batch, self.n_kv_heads, pos.shape[1], self.head_dim)
        if k.shape != expected or v.shape != expected or pos.shape[0] != self.batch:
            raise ValueError(
                f"layer {layer}: keys {tuple(k.shape)}, values {tuple(v.shape)} and positions "
                f"{tuple(pos.shape)} do not fit this cache; (batch, heads, tokens, channels) is {expected}."
            )
        self._advance(pos)
        return self.layers[layer].append(k, v, pos, store)

    def view(
        self,
        layer: int,
        select: Int[Tensor, "batch heads m"] | None = None,
    ) -> KVView:
        """Keys, values and positions of a layer, all or the selected slots (−1: none) of every head.

        What it gives are windows on the storage, good until the cache changes. Counts the bits read in
        `traffic`. Raises: ValueError for a slot that is not there.
        """
        store = self.layers[layer]
        table = store.table
        k, v = store.keys_values()
        pos, valid = table.read(POS), table.valid()
        tokens = table.read(TOKENS) if TOKENS in table.columns else None
        k_bits, v_bits = store.read_bits
        if select is None:
            self.traffic.count(k_bits, v_bits)
            return KVView(k, v, pos, valid, tokens)
        self._check_slots(layer, select, "select")
        slots = max(table.longest, 1)
        self.traffic.count(k_bits * select.shape[2] // slots, v_bits * select.shape[2] // slots)
        index = select.clamp(min=0)
        return KVView(
            _pick(k, index),
            _pick(v, index),
            _pick(pos.expand(-1, self.n_kv_heads, -1), index),
            None if bool((select >= 0).all()) else select >= 0,
            None if tokens is None else _pick(tokens.expand(-1, self.n_kv_heads, -1), index),
        )

    def evict(self, layer: int, keep: Int[Tensor, "batch m"] | Int[Tensor, "batch heads m"]) -> None:
        """Free all slots of a layer but `keep`, ascending; −1 fills up rows that keep fewer, at their end.

        Raises: ValueError if a slot is not there or the order is not kept.
        """
        keep = keep[:, None] if keep.ndim == 2 else keep
        self._check_slots(layer, keep, "evict")
        ends = torch.where(keep >= 0, keep, torch.iinfo(keep.dtype).max)
        if bool((ends.diff(dim=-1) < 0).any()) or bool(
            ((keep.diff(dim=-1) == 0) & (keep[..., 1:] >= 0)).any()
        ):
            raise ValueError(
                f"layer {layer}: the slots to keep must ascend, with −1 only at the end of a row."
            )
        table = self.layers[layer].table
        for counts in self._marks.values():
            before = (keep >= 0) & (keep < counts[layer][:, :, None])
            counts[layer] = before.sum(-1)
        self.layers[layer].gather(keep)
        for counts in self._marks.values():
            counts[layer] = counts[layer].expand(-1, table.rows)

    def recompress(self, layer: int, slots: Int[Tensor, "batch m"], tier: int) -> None:
        """Store slots in fewer bits. Raises: CacheCannot, unless a cache has tiers."""
        raise CacheCannot("recompress", f"{type(self).__name__} stores all slots of an age alike")

    def mark(self) -> Mark:
        """Remember the present state for `rollback`; forgotten when the mark is."""
        mark = Mark(next(self._numbers), self.next_pos.clone())
        self._marks[mark] = [layer.table.counts for layer in self.layers]
        return mark

    def rollback(self, mark: Mark) -> None:
        """Drop everything appended after `mark`, in all layers; what was evicted since stays evicted.

        Raises: ValueError for a mark that is not of this cache or later than one rolled back to.
        """
        if mark not in self._marks:
            raise ValueError("this mark is of another cache, or later than one that was rolled back to.")
        for layer, counts in zip(self.layers, self._marks[mark], strict=True):
            layer.truncate(counts)
        self.next_pos, self._last_pos = mark.next_pos.clone(), None
        for later in [m for m in self._marks if m.number > mark.number]:
            del self._marks[later]

    def compact(self, layer: int | None, order: Int[Tensor, "batch m"]) -> None:
        """Of the slots since the last mark keep `order` (0 is the first since it), in that order.

        layer: one, or None for all. −1 fills up rows that keep fewer, at their end. Raises: ValueError where
        there is no mark or no such slot.
        """
        if not self._marks:
            raise ValueError("compact needs a mark to count slots from; call mark() before appending.")
        self.permuted = True
        last = max(self._marks, key=lambda mark: mark.number)
        for index in range(self.n_layers) if layer is None else [layer]:
            table, start = self.layers[index].table, self._marks[last][index]
            since = (table.counts - start).amin(1, keepdim=True)
            _check_order(index, order, since)
            self.layers[index].permute(start.expand(-1, table.rows), order)

    def keep_path(self, mark: Mark, path: Int[Tensor, "batch m"]) -> None:
        """Of the tokens since `mark`, the last one, keep `path` in all layers: tokens at the positions that
        follow the mark's, one after the other. The next position follows theirs.

        path: ascending, −1 fills up rows that keep fewer. Raises: ValueError for another mark than the last,
        or slots that are not there.
        """
        if mark not in self._marks or any(other.number > mark.number for other in self._marks):
            raise ValueError("a path is kept since the last mark; this one is of another cache, or not last.")
        m = path.shape[1]
        if bool((path == torch.arange(m, device=path.device)).all()):
            for layer, counts in zip(self.layers, self._marks[mark], strict=True):
                layer.truncate(counts + m)
        else:
            permuted = self.permuted
            self.compact(None, path)
            # Slots stand in the order of their positions again.
            self.permuted = permuted
        self.next_pos, self._last_pos = mark.next_pos + (path >= 0).sum(1), None

    def reorder(self, samples: Int[Tensor, " new_batch"]) -> None:
        """Make sample i a copy of the present sample `samples[i]`. Raises: ValueError if there is none."""
        if samples.numel() == 0 or not 0 <= int(samples.min()) <= int(samples.max()) < self.batch:
            raise ValueError(f"samples {samples.tolist()} are not in a batch of {self.batch}.")
        for layer in self.layers:
            layer.reorder(samples)
        self.next_pos, self._last_pos = self.next_pos[samples], None
        for mark, counts in self._marks.items():
            mark.next_pos = mark.next_pos[samples]
            self._marks[mark] = [c[samples] for c in counts]

    def clone(self) -> "SlotCache":
        """A copy that shares no storage; marks stay with the original."""
        other = type(self).__new__(type(self))
        SlotCache.__init__(other, [layer.clone() for layer in self.layers], self.n_kv_heads, self.head_dim)
        other.next_pos = self.next_pos.clone()
        other.side._names = set(self.side._names)
        other.permuted = self.permuted
        return other

    def nbytes(self, layer: int | None = None) -> int:
        """Bytes held, of one layer or all: keys, values, scales, positions, side tables, reserve."""
        return sum(self.parts(layer).values())

    def parts(self, layer: int | None = None) -> dict[str, int]:
        """Bytes held by part."""
        total: dict[str, int] = {}
        for store in self.layers if layer is None else [self.layers[layer]]:
            for part, size in store.nbytes.items():
                total[part] = total.get(part, 0) + size
        return total

    def _advance(self, pos: Int[Tensor, "batch n"]) -> None:
        """Count these positions as seen."""
        # All layers of a step get the same tensor: looking at the positions once is enough.
        if pos is not self._last_pos and pos.shape[1]:
            self.next_pos = torch.maximum(self.next_pos, pos.amax(1).to(self.next_pos) + 1)
            self._last_pos = pos

    def _check_slots(self, layer: int, slots: Shaped[Tensor, "batch rows m"], what: str) -> None:
        if slots.is_floating_point():
            raise TypeError(f"{what} of layer {layer}: slots are {slots.dtype}; they must be integers.")
        counts = self.layers[layer].table.counts
        rows = slots.shape[1]
        if slots.shape[0] != self.batch or rows not in (1, self.n_kv_heads):
            raise ValueError(
                f"{what} of layer {layer}: slots {tuple(slots.shape)} must be (batch={self.batch}, slots) or "
                f"(batch, heads={self.n_kv_heads}, slots)."
            )
        bad = (slots < -1) | (slots >= counts[:, :, None])
        if bool(bad.any()):
            raise ValueError(
                f"{what} of layer {layer}: slot {int(slots.expand_as(bad)[bad][0])} is not held; there are "
                f"{counts.amax(1).tolist()} slots."
            )


def _check_order(layer: int, order: Tensor, since: Tensor) -> None:
    inside = bool(((order >= -1) & (order < since)).all())
    padded = bool(((order[:, 1:] >= 0) & (order[:, :-1] < 0)).any())
    kept = [row[row >= 0].tolist() for row in order]
    if not inside or padded or any(len(set(row)) < len(row) for row in kept):
        raise ValueError(
            f"compact of layer {layer}: {order.tolist()} must name slots since the mark, of which there are "
            f"{since[:, 0].tolist()}, once each, with −1 only at the end of a row."
        )


def _pick(data: Tensor, index: Tensor) -> Tensor:
    """Slots `index` (batch, heads, m) of (batch, heads, slots, …)."""
    index = index.reshape(*index.shape, *[1] * (data.ndim - 3))
    return data.gather(2, index.expand(-1, -1, -1, *data.shape[3:]))
