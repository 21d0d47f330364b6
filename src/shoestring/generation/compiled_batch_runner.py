"""Generation for several sequences of one length at once, by the compiled step of a batch."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.generation.compiled_runner import by_layer, unfit_cache
from shoestring.generation.decoder_runner import DecoderRunner
from shoestring.generation.slot_cache import POS, SlotCache
from shoestring.generation.step_cache import StepCache, StorageWatch
from shoestring.generation.token_cache import grid_column
from shoestring.kernels.cached_attention import StoredRows
from shoestring.kernels.decode_batch import BatchSequence
from shoestring.kernels.decode_step import PROMPT_TOKENS
from shoestring.kernels.dense_linear import STORAGE_KINDS
from shoestring.layers.packed_linear import PackedLinear
from shoestring.models.compiled_batch import CompiledBatch
from shoestring.models.compiled_decoder import CannotCompile
from shoestring.models.decoder import Decoder
from shoestring.notices import notice_fallback

MOST_PLAIN_ROWS = 32
"""Of plain weights more rows are a product of matrices, which torch does best."""


class CompiledBatchRunner(DecoderRunner):
    """A decoder that runs a token of every sequence in one compiled call; many rows go the usual way.

    cache: an empty `DenseCache` or `TokenCache`, or a hybrid of one, for the sequences.

    Raises: CannotCompile, NoCompiler; TypeError for another cache.
    """

    cache: StepCache

    def __init__(self, model: Decoder, cache: StepCache) -> None:
        if reason := unfit_cache(cache, cache.batch):
            raise TypeError(f"the compiled step cannot use this cache: {reason}.")
        self.compiled = CompiledBatch(model)
        super().__init__(model, cache)
        self._packed = any(isinstance(module, PackedLinear) for module in model.modules())
        self._storage = StorageWatch(cache)

    def feed(self, ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch vocab"]:
        """Append tokens to every sequence; the logits of the tokens that follow, float32 from the step.

        Raises: ValueError for keys or values that the cache cannot hold: it is of no use then.
        """
        start, (batch, n) = self.cache.plain_slots(), ids.shape
        many = ids.numel() > MOST_PLAIN_ROWS and not self._packed
        if start is None or not 0 < n <= PROMPT_TOKENS or many:
            return super().feed(ids)
        self.cache.claim(n)
        self._follow_storage()
        self.cache.count_reads()
        for columns in self.cache.storage():
            columns[POS][:, 0, start : start + n] = torch.arange(start, start + n, dtype=torch.int32)
        at_once = PROMPT_TOKENS // n
        return torch.cat(
            [
                # What is given must outlive the next call.
                self.compiled.run(
                    ids[first : first + at_once].flatten(),
                    [
                        BatchSequence(start, n, (sample,), sample=sample)
                        for sample in range(first, min(first + at_once, batch))
                    ],
                ).clone()
                for first in range(0, batch, at_once)
            ]
        )

    def _follow_storage(self) -> None:
        if self._storage.moved():
            head_dim = self.model.cfg.head_dim
            self.compiled.use_blocks(
                by_layer(self.cache, [_blocks(part, head_dim) for part in self.cache.storage()])
            )


def batch_runner(model: Decoder, cache: SlotCache) -> DecoderRunner:
    """A `CompiledBatchRunner` where it can do what is asked, else a `DecoderRunner`.

    Announced is what keeps a model slow that could be fast, as of `compiled_runner`.
    """
    parameter = next(model.parameters())
    fits = parameter.device.type == "cpu" and parameter.dtype in STORAGE_KINDS
    fits = fits and not torch.is_autocast_enabled("cpu") and unfit_cache(cache, cache.batch) is None
    if not fits or not isinstance(cache, StepCache):
        return DecoderRunner(model, cache)
    try:
        return CompiledBatchRunner(model, cache)
    except (CannotCompile, NoCompiler) as error:
        notice_fallback("decode step", f"module by module instead of one compiled call ({error})")
        return DecoderRunner(model, cache)


def _blocks(columns: Mapping[str, Tensor], head_dim: int) -> tuple[StoredRows, StoredRows]:
    """Keys and values of one layer: each sequence is one block, as long as there is room."""
    k, v = (
        StoredRows(
            columns[part].flatten(0, 1), head_dim,
            None if (grids := columns.get(grid_column(part))) is None else grids.flatten(0, 1),
        )
        for part in "kv"
    )  # fmt: skip
    return k, v
