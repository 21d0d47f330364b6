"""One layer of a tiered cache: groups of the oldest tokens, each in bits of its own, then a tail in full."""

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.generation.slot_cache import POS
from shoestring.generation.slot_table import SlotTable
from shoestring.generation.tier_group import CodedGroup, FullGroup, Group
from shoestring.kernels.tier_codes import encode_tiers
from shoestring.models.protocols import CacheCannot
from shoestring.numbers.token_cache_format import TOKEN_BITS


class TierStore:
    """The first slots of every row are in groups; all others are in the tail.

    groups: of each sample. grouped: how many slots of each row are in groups.
    """

    def __init__(
        self, table: SlotTable, tail: SlotTable, groups: list[list[Group]], grouped: Int[Tensor, "batch rows"]
    ) -> None:
        self.table, self.tail, self.groups, self.grouped = table, tail, groups, grouped

    @classmethod
    def empty(
        cls,
        batch: int,
        heads: int,
        dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        capacity: int,
    ) -> "TierStore":
        """No slots. capacity: tokens to allocate at once."""
        table = SlotTable(batch, heads, device, capacity)
        table.add_column(POS, (), torch.int32, per_head=False)
        tail = SlotTable(batch, heads, device, capacity)
        for part in ("k", "v"):
            tail.add_column(part, (dim,), dtype, per_head=True)
        return cls(table, tail, [[] for _ in range(batch)], torch.zeros_like(table.counts))

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of every tensor's storage, by part; what groups share is counted once."""
        seen: dict[int, tuple[str, int]] = {}
        for group in (group for groups in self.groups for group in groups):
            for part, tensor in group.tensors.items():
                name = {"k": "k", "v": "v", "slots": "tables"}.get(part, "scales")
                storage = tensor.untyped_storage()
                seen[storage.data_ptr()] = (name, storage.nbytes())
        held = {"k": 0, "v": 0, "scales": 0, "tail": self.tail.nbytes, "tables": self.table.nbytes}
        held["tables"] += self.grouped.untyped_storage().nbytes()
        for name, size in seen.values():
            held[name] += size
        return held

    @property
    def read_bits(self) -> tuple[int, int]:
        """Bits of all keys and of all values in use, scales included."""
        column = self.tail.columns["k"].data
        k = v = self.tail.slots("k") * column.shape[-1] * column.element_size() * 8
        for group in (group for groups in self.groups for group in groups):
            parts = {part: 8 * tensor.nbytes for part, tensor in group.tensors.items()}
            k += parts["k"] + parts.get("k_grid", 0)
            v += parts["v"] + parts.get("v_grid", 0) + parts.get("c", 0)
        return k, v

    def append(self, k: Tensor, v: Tensor, pos: Tensor, store: Tensor | None) -> Tensor:
        """Add to the tail."""
        self.tail.append(pos.shape[1], store, k=k, v=v)
        return self.table.append(pos.shape[1], store, **{POS: pos[:, None]})

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """All keys and values in the order of slots; codes are decoded at every call."""
        recent = {part: self.tail.read(part) for part in ("k", "v")}
        if not any(self.groups):
            return recent["k"], recent["v"]
        batch, heads, _, dim = recent["k"].shape
        k, v = (recent["k"].new_zeros(batch, heads, self.table.longest, dim) for _ in range(2))
        counts = self.tail.counts
        for sample in range(batch):
            for head in range(heads):
                row = head if counts.shape[1] > 1 else 0
                start, count = int(self.grouped[sample, row]), int(counts[sample, row])
                for whole, part in ((k, "k"), (v, "v")):
                    whole[sample, head, start : start + count] = recent[part][sample, head, :count]
            for group in self.groups[sample]:
                held = slice(group.first_head, group.first_head + group.heads)
                for whole, values in zip((k, v), group.keys_values(), strict=True):
                    whole[sample, held].index_copy_(1, group.slots.long(), values.to(whole.dtype))
        return k, v

    def gather(self, keep: Tensor) -> None:
        """Keep these slots, ascending; codes that stay are not rounded again."""
        if keep.shape[1] > self.table.rows:
            self._split_heads()
        keep = keep.expand(-1, self.table.rows, -1)
        in_groups = (keep >= 0) & (keep < self.grouped[:, :, None])
        for sample, groups in enumerate(self.groups):
            kept = [self._kept(group, keep[sample], in_groups[sample]) for group in groups]
            self.groups[sample] = [group for group in kept if len(group.slots)]
        behind = torch.where(in_groups | (keep < 0), -1, keep - self.grouped[:, :, None])
        self.tail.gather(_to_the_front(behind))
        self.table.gather(keep)
        self.grouped = in_groups.sum(-1)

    def truncate(self, counts: Tensor) -> None:
        """Drop slots from `counts` on."""
        self.table.truncate(counts)
        left = self.table.counts
        if bool((left < self.grouped).any()):
            for sample, groups in enumerate(self.groups):
                kept = []
                for group in groups:
                    row = group.first_head if left.shape[1] > 1 else 0
                    index = (group.slots < left[sample, row]).nonzero()[:, 0]
                    kept.append(group.take(index, group.slots[index]))
                self.groups[sample] = [group for group in kept if len(group.slots)]
            self.grouped = torch.minimum(self.grouped, left)
        self.tail.truncate(left - self.grouped)

    def permute(self, start: Tensor, order: Tensor) -> None:
        """Reorder behind `start`. Raises: CacheCannot for slots that are in groups."""
        if bool((start < self.grouped).any()):
            raise CacheCannot("compact", "some slots since the mark are compressed; compact before that")
        self.table.permute(start, order)
        self.tail.permute(start - self.grouped, order)

    def reorder(self, samples: Tensor) -> None:
        """Make sample i a copy of the present sample `samples[i]`."""
        self.table.reorder(samples)
        self.tail.reorder(samples)
        self.grouped = self.grouped[samples]
        self.groups = [[group.clone() for group in self.groups[i]] for i in samples.tolist()]

    def clone(self) -> "TierStore":
        """A copy that shares no storage."""
        groups = [[group.clone() for group in groups] for groups in self.groups]
        return TierStore(self.table.clone(), self.tail.clone(), groups, self.grouped.clone())

    def compress(self, counts: Int[Tensor, " batch"], tiers: Int[Tensor, "batch rows m"]) -> None:
        """Move the first `counts` tokens of each sample's tail to groups of as many bits as `tiers` says.

        tiers: one row for all heads or one per KV head. Raises: as `encode_tiers`; then nothing changed.
        """
        k, v = self.tail.read("k"), self.tail.read("v")
        made: list[list[Group]] = []
        for sample, count in enumerate(counts.tolist()):
            first = self.grouped[sample]
            each = k.shape[1] // tiers.shape[1]
            rows = tiers[sample, :, :count]
            made.append([])
            for row, bits in enumerate(rows):
                if not count:
                    continue
                heads = slice(row * each, (row + 1) * each)
                start = int(first[heads.start if len(first) > 1 else 0])
                made[-1] += _groups(
                    k[sample, heads, :count], v[sample, heads, :count], bits, start, heads.start
                )
        rest = self.tail.counts - counts[:, None]
        keep = counts[:, None, None] + torch.arange(max(0, int(rest.max())), device=k.device)
        keep = keep.expand(-1, self.tail.rows, -1)
        self.tail.gather(keep.masked_fill(keep >= self.tail.counts[:, :, None], -1))
        self.grouped = self.grouped + counts[:, None]
        for groups, new in zip(self.groups, made, strict=True):
            groups += new

    def _split_heads(self) -> None:
        self.table.split_heads()
        self.tail.split_heads()
        self.grouped = self.grouped.expand(-1, self.table.rows).clone()
        self.groups = [[part for group in groups for part in group.split()] for groups in self.groups]

    def _kept(self, group: Group, keep: Tensor, in_groups: Tensor) -> Group:
        """What `gather` leaves of a group of one sample."""
        row = group.first_head if keep.shape[0] > 1 else 0
        target = torch.full((self.table.longest,), -1, device=keep.device)
        new = in_groups[row].nonzero()[:, 0]
        target[keep[row, new]] = new
        moved = target[group.slots.long()]
        index = (moved >= 0).nonzero()[:, 0]
        return group if len(index) == len(moved) == int(moved.max()) + 1 else group.take(index, moved[index])


def _groups(k: Tensor, v: Tensor, tiers: Tensor, start: int, first_head: int) -> list[Group]:
    """Groups of heads (heads, tokens, dim), one for each width; their values share the scales of channels."""
    by_width = [(bits, (tiers == bits).nonzero()[:, 0]) for bits in sorted(TOKEN_BITS)]
    widths = [(index, bits) for bits, index in by_width if len(index)]
    coded = [(index, bits) for index, bits in widths if bits < 16]
    found: list[Group] = []
    if coded:
        c, codes = encode_tiers(k, v, coded)
        found += [
            CodedGroup.of(made, c, index + start, first_head, k.shape[0], bits, k.dtype)
            for (index, bits), made in zip(coded, codes, strict=True)
        ]
    for index, _ in widths[len(coded) :]:
        found.append(FullGroup((index + start).int(), first_head, k[:, index], v[:, index]))
    return found


def _to_the_front(index: Tensor) -> Tensor:
    """Rows with their −1 moved to the end, and cut to the longest."""
    ends = index.masked_fill(index < 0, torch.iinfo(index.dtype).max).sort(-1).values
    width = int((index >= 0).sum(-1).max()) if index.numel() else 0
    ends = ends[..., :width]
    return ends.masked_fill(ends == torch.iinfo(index.dtype).max, -1)
