"""A batch of sequences over blocks, one sequence after the other and module by module: what the compiled step
means, and what answers where there is none.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.generation.block_allocator import BlockAllocator
from shoestring.generation.block_storage import BlockStorage
from shoestring.generation.paged_cache import PagedStore
from shoestring.generation.slot_cache import POS, LayerStore, SlotCache
from shoestring.generation.slot_table import SlotTable
from shoestring.kernels.decode_batch import BatchSequence
from shoestring.layers.attention_masks import KVView
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want


class NaiveBatch:
    """The same call as `CompiledBatch.run`. Where blocks hold codes, a run of new tokens sees itself
    unrounded, as with every quantised cache of a `Decoder`.
    """

    def __init__(self, model: Decoder, storages: Sequence[BlockStorage]) -> None:
        self.model, self.storages = model, list(storages)

    def run(
        self, ids: Int[Tensor, " rows"], sequences: Sequence[BatchSequence]
    ) -> Float[Tensor, "wanted vocab"]:
        """Logits of the sequences that want them; ids of all, one after the other."""
        logits, first = [], 0
        for sequence in sequences:
            rows = ids[None, first : first + sequence.tokens]
            first += sequence.tokens
            out = self.model(rows, cache=self._cache(sequence), want=Want(logits="last"))
            if sequence.wants_logits:
                logits.append(out.logits[0, -1].float())
        return torch.stack(logits) if logits else ids.new_empty(0, self.model.cfg.vocab_size).float()

    def _cache(self, sequence: BatchSequence) -> SlotCache:
        """The sequence so far as a cache on the same blocks."""
        cfg = self.model.cfg
        layers: list[LayerStore] = [self._layer(storage, sequence) for storage in self.storages]
        cache = _BlocksCache(layers, cfg.num_key_value_heads, cfg.head_dim)
        cache.next_pos[:] = sequence.start
        cache.dtype = next(self.model.parameters()).dtype
        return cache

    def _layer(self, storage: BlockStorage, sequence: BatchSequence) -> PagedStore:
        device = storage.parts["k"].device
        table = SlotTable(1, self.model.cfg.num_key_value_heads, device, sequence.start + sequence.tokens)
        table.add_column(POS, (), torch.int32, per_head=False)
        table.append(sequence.start, pos=torch.arange(sequence.start, device=device)[None, None])
        held = BlockAllocator(storage.n_blocks)
        for _ in range(storage.n_blocks):
            held.take()
        return PagedStore(table, storage, held, [list(sequence.blocks)])


class _BlocksCache(SlotCache):
    """Gives keys and values in the type that the model computes in, whatever blocks hold."""

    dtype: torch.dtype

    def view(self, layer: int, select: Tensor | None = None) -> KVView:
        found = super().view(layer, select)
        return replace(found, k=found.k.to(self.dtype), v=found.v.to(self.dtype))

    @property
    def exact_tokens(self) -> int | None:
        first = self.layers[0]
        assert isinstance(first, PagedStore)
        return None if first.storage.form.exact else 0
