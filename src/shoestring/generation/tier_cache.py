"""A KV cache with tiers: old tokens in as many bits as they are worth, the last ones in full.

Source: He et al. 2024, "ZipVL", section 4.3 and Algorithm 1.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.generation.slot_cache import POS, LayerStore, SlotCache
from shoestring.generation.tier_group import FullGroup, Group
from shoestring.generation.tier_store import TierStore
from shoestring.layers.attention import attend
from shoestring.layers.attention_masks import Causal, KVView
from shoestring.models.decoder import Decoder
from shoestring.models.protocols import CacheCannot
from shoestring.numbers.tier_format import check_bits


class TierCache(SlotCache):
    """A cache whose oldest tokens may be stored in 8, 4 or 2 bits, each layer and token as `recompress` says.

    Until then, and behind them, tokens are held in full. Evicting and taking back round nothing again. Slots
    that are compressed cannot be reordered among each other (`compact`).

    Raises: ValueError for sizes below 1.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        capacity: int = 0,
    ) -> None:
        layers: list[LayerStore] = [
            TierStore.empty(batch, n_kv_heads, head_dim, dtype=dtype, device=device, capacity=capacity)
            for _ in range(n_layers)
        ]
        super().__init__(layers, n_kv_heads, head_dim)

    def store(self, layer: int) -> TierStore:
        """The storage of a layer."""
        found = self.layers[layer]
        assert isinstance(found, TierStore)
        return found

    def recompress(
        self, layer: int, slots: Int[Tensor, "batch m"], tier: int | Int[Tensor, "batch rows m"]
    ) -> None:
        """Store these slots in the bits of a tier, 16 (in full), 8, 4 or 2.

        slots: the oldest that are not compressed yet, without a gap; −1 fills up rows. tier: one for all, or
        one for each slot, in one row or one per KV head; slots of one call share what the channels of
        their values are divided by. A slot is compressed once: what it lost does not come back.

        Raises: ValueError for another width or shape; CacheCannot for slots in another order.
        """
        store = self.store(layer)
        bits = torch.full((self.batch, 1, slots.shape[1]), tier) if isinstance(tier, int) else tier
        if bits.shape[0] != self.batch or bits.shape[1] not in (1, self.n_kv_heads):
            raise ValueError(
                f"layer {layer}: tiers {tuple(bits.shape)} must be (batch={self.batch}, 1 or "
                f"heads={self.n_kv_heads}, slots={slots.shape[1]})."
            )
        for width in bits.unique().tolist():
            check_bits(width, "tier")
        self._check_slots(layer, slots[:, None], "recompress")
        if store.table.rows > 1 and bits.shape[1] == 1:
            bits = bits.expand(-1, self.n_kv_heads, -1)
        counts = (slots >= 0).sum(1)
        expected = store.grouped[:, :, None] + torch.arange(slots.shape[1], device=slots.device)
        present = torch.arange(slots.shape[1], device=slots.device) < counts[:, None]
        wrong = (expected != slots[:, None]) & present[:, None]
        if bool(wrong.any()) or bool((slots >= 0).ne(present).any()):
            raise CacheCannot(
                "recompress",
                f"slots {slots.tolist()} of layer {layer} are not the oldest in full, which start at "
                f"{store.grouped.tolist()}",
            )
        store.compress(counts, bits)


def tier_cache(
    model: Decoder, *, batch: int = 1, dtype: torch.dtype | None = None, capacity: int = 0
) -> TierCache:
    """An empty `TierCache` for a decoder. dtype: of tokens in full; by default the model's."""
    cfg, parameter = model.cfg, next(model.parameters())
    return TierCache(
        cfg.num_hidden_layers, batch, cfg.num_key_value_heads, cfg.head_dim,
        dtype=dtype or parameter.dtype, device=parameter.device, capacity=capacity,
    )  # fmt: skip


def tiered_attention(
    q: Float[Tensor, "batch heads n dim"],
    cache: TierCache,
    layer: int,
    pos: Int[Tensor, "batch n"],
    scale: float,
    window: int | None = None,
) -> tuple[Float[Tensor, "batch heads n dim"], list[Float[Tensor, "kv_heads tail"]]]:
    """Causal attention over a layer of a tiered cache, from the codes: no key or value is decoded to memory
    but a block at a time. Also, of each sample, the last row's probabilities in the tail, mean over the query
    heads of each KV head.

    pos: of the rows, −1 where there is none (0 comes out). window: as in `attend`.
    """
    store = cache.store(layer)
    cache.traffic.count(*store.read_bits)
    out, tails = torch.zeros_like(q), []
    exact = torch.promote_types(q.dtype, torch.float32)
    for sample in range(q.shape[0]):
        rows = q[sample].to(exact).unflatten(0, (cache.n_kv_heads, -1)) * scale
        tails.append(rows.new_zeros(cache.n_kv_heads, int(store.tail.counts[sample].max())))
        for heads, groups in _by_heads(store, sample, cache.n_kv_heads):
            # Group by group in the order of storage; positions say what a row may see of each.
            table_row = heads.start if store.table.rows > 1 else 0
            at = store.table.read(POS)[sample, table_row]
            order = torch.cat([group.slots.long() for group in groups])
            seen = _seen(pos[sample], at[order], window)
            part = rows[heads].flatten(1, 2)
            scores = torch.cat([group.scores(part) for group in groups], -1).unflatten(1, (-1, q.shape[2]))
            p = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            p = torch.where(seen.any(-1, keepdim=True), p, 0.0).to(exact)
            pieces = p.flatten(1, 2).split([len(group.slots) for group in groups], -1)
            total = sum(group.weighted(piece) for group, piece in zip(groups, pieces, strict=True))
            assert isinstance(total, Tensor)
            group_heads = slice(heads.start * rows.shape[1], heads.stop * rows.shape[1])
            out[sample, group_heads] = total.unflatten(1, (-1, q.shape[2])).flatten(0, 1).to(q.dtype)
            tail = len(groups[-1].slots)
            tails[-1][heads, :tail] = p[:, :, -1, p.shape[-1] - tail :].mean(1)
    return out, tails


def naive_tiered_attention(
    q: Float[Tensor, "batch heads n dim"],
    cache: TierCache,
    layer: int,
    pos: Int[Tensor, "batch n"],
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "batch heads n dim"]:
    """Attention over everything decoded: the meaning of `tiered_attention`."""
    view: KVView = cache.view(layer)
    return attend(q, view, Causal(pos, view.pos), scale, window).out


def _by_heads(store: TierStore, sample: int, kv_heads: int) -> list[tuple[slice, list[Group]]]:
    """Groups of a sample, the tail last, by the heads that they have in common."""
    groups = store.groups[sample]
    together = store.table.rows == 1 and all(group.heads == kv_heads for group in groups)
    found = []
    for heads in [slice(0, kv_heads)] if together else [slice(h, h + 1) for h in range(kv_heads)]:
        row = heads.start if store.table.rows > 1 else 0
        count, start = int(store.tail.counts[sample, row]), int(store.grouped[sample, row])
        k, v = (store.tail.read(part)[sample, heads, :count] for part in ("k", "v"))
        tail = FullGroup(torch.arange(start, start + count, device=k.device), heads.start, k, v)
        mine = [group for group in groups if group.first_head in range(heads.start, heads.stop)]
        if not together and any(group.heads > 1 for group in groups):
            mine = [g for group in groups for g in (group.split() if group.heads > 1 else [group])]
            mine = [group for group in mine if group.first_head == heads.start]
        found.append((heads, [*mine, tail]))
    return found


def _seen(pos_q: Tensor, pos_k: Tensor, window: int | None) -> Bool[Tensor, "n slots"]:
    behind = pos_q[:, None] - pos_k
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)
