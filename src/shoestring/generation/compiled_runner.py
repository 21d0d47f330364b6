"""Generation by the compiled decode step: the runner of a `Decoder` on the CPU with a plain cache.

What the step cannot do, the decoder itself does, token by token where need be: both work on one cache.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.dense_cache import DenseCache, DenseStore
from shoestring.generation.evicting_cache import CachePolicy
from shoestring.generation.hybrid_cache import HybridCache
from shoestring.generation.slot_cache import POS
from shoestring.generation.step_cache import StepCache, StorageWatch
from shoestring.generation.token_cache import TokenCache, TokenStore, grid_column
from shoestring.kernels.decode_mamba import LayerState
from shoestring.kernels.decode_step import MOST_TOKENS, LayerCache
from shoestring.kernels.dense_linear import STORAGE_KINDS
from shoestring.kernels.grouped_linear import Activations
from shoestring.layers.packed_linear import PackedLinear
from shoestring.layers.row_sparse_linear import row_sparse_layers
from shoestring.models.compiled_decoder import CannotCompile, CompiledDecoder, KernelOf
from shoestring.models.decoder import Decoder
from shoestring.notices import notice_fallback
from shoestring.numbers.cache_format import CacheFormat

Kept = TypeVar("Kept")


class CompiledRunner(DecoderRunner):
    """A decoder that runs each step in one compiled call; long prompts of plain weights go the usual way.

    cache: an empty `DenseCache` or `TokenCache` for one sequence, or a hybrid of one; by default a new one in
    the model's `kv_cache_format`, else of the model's type, or in float16 where inputs are rounded to int8.
    activations: in what inputs of packed layers take part. kernel_of: as of `CompiledDecoder`. selection: one
    without hooks, which the call has no place for.

    Raises: CannotCompile, NoCompiler; TypeError for another cache; ValueError for a selection with hooks.
    """

    cache: StepCache

    def __init__(
        self,
        model: Decoder,
        cache: Any = None,
        capacity: int = 0,
        *,
        activations: Activations = Activations.FLOAT32,
        kernel_of: KernelOf | None = None,
        selection: CachePolicy | None = None,
    ) -> None:
        if selection is not None and selection.hooks:
            raise ValueError(
                f"{type(selection).__name__} looks into attention, which a compiled step does not show; use "
                "a DecoderRunner."
            )
        self.compiled = CompiledDecoder(model, kernel_of, activations=activations)
        self._packed = any(isinstance(module, PackedLinear) for module in model.modules())
        self._row_sparse = bool(row_sparse_layers(model))
        if cache is None:
            narrow = self._packed and activations is Activations.INT8
            cache = decoder_cache(model, capacity=capacity, dtype=torch.float16 if narrow else None)
        super().__init__(model, cache, capacity, selection=selection)
        self._windowed = any(window is not None for window in model.cfg.windows)
        if reason := unfit_cache(cache):
            raise TypeError(f"the compiled step cannot use this cache: {reason}.")
        self._storage = StorageWatch(cache)
        # A state cannot be given back; only codes can turn out not to hold what they should.
        columns = cache.storage()[0] if cache.storage() else {}
        self._marks = isinstance(cache, HybridCache) and any(grid_column(part) in columns for part in "kv")

    def feed(self, ids: Int[Tensor, "1 n"]) -> Float[Tensor, "1 vocab"]:
        """Append tokens to the sequence; the logits of the token that follows, float32 from the step."""
        n, start = ids.shape[1], self.compiled_slots()
        # Of plain weights a long run of tokens is a product of matrices, which torch does best; a prompt of
        # row-sparse ones is dense, which their kernels are not.
        by_module = (n > MOST_TOKENS and not self._packed) or (n > 1 and self._row_sparse)
        if start is None or n == 0 or by_module:
            return super().feed(ids)
        logits = self._step(ids, start, 1)
        self.after_step()
        return logits

    def compiled_slots(self) -> int | None:
        """The slots of every layer, where one call can go on from them; None where it cannot."""
        # A window is counted in slots: where tokens are missing it would reach too far.
        return self.cache.plain_slots() if self._windowed else self.cache.alike_slots()

    def feed_all(self, ids: Int[Tensor, "1 n"]) -> Float[Tensor, "n vocab"]:
        """Append up to `MOST_TOKENS` tokens; the logits after each of them, as drafts are verified.

        Raises: ValueError for more tokens, or a cache that one call cannot go on from.
        """
        start = self.compiled_slots()
        if start is None or not 1 <= ids.shape[1] <= MOST_TOKENS:
            raise ValueError(
                f"{ids.shape[1]} tokens on this cache: feed_all takes 1 to {MOST_TOKENS}, and a cache that "
                "holds every token in its place."
            )
        return self._step(ids, start, ids.shape[1])

    def _step(self, ids: Tensor, start: int, logit_rows: int) -> Tensor:
        mark = self.cache.mark() if self._marks else None
        shift = int(self.cache.next_pos) - start
        self.cache.claim(ids.shape[1])
        self._follow_storage()
        self.cache.count_reads()
        try:
            # What is given must outlive the next call.
            return self.compiled(ids[0], start, logit_rows, shift).clone()
        except ValueError:
            # Keys or values that the cache cannot hold: it is left as it was.
            if mark is None:
                self.cache.give_back(ids.shape[1])
            else:
                self.cache.rollback(mark)
            raise

    def _follow_storage(self) -> None:
        if self._storage.moved():
            self.compiled.use(by_layer(self.cache, [layer_cache(part) for part in self.cache.storage()]))


def by_layer(cache: StepCache, kept: Sequence[Kept]) -> list[Kept | LayerState]:
    """Of every layer what it keeps: its state, else the next of what layers with attention keep."""
    keys, states = iter(kept), cache.own_states()
    return [
        LayerState(states[layer]["conv"], states[layer]["ssm"]) if layer in states else next(keys)
        for layer in range(cache.n_layers)
    ]


def layer_cache(columns: Mapping[str, Tensor]) -> LayerCache:
    """Where one layer of a `StepCache` of one sequence keeps what it holds, for the compiled step."""
    k_grids, v_grids = (columns.get(grid_column(part)) for part in ("k", "v"))
    return LayerCache(
        columns["k"][0],
        columns["v"][0],
        columns[POS][0, 0],
        None if k_grids is None else k_grids[0],
        None if v_grids is None else v_grids[0],
    )


def compiled_runner(
    model: Decoder,
    cache: Any = None,
    capacity: int = 0,
    activations: Activations = Activations.FLOAT32,
    selection: CachePolicy | None = None,
) -> CompiledRunner | None:
    """A `CompiledRunner` where it can do all that is asked, else None.

    Announced is what keeps a model slow that could be fast: no compiler, or a module without a kernel. What
    asks for another path (a GPU, a `QuantCache`, float64, autocast, a selection that looks into attention)
    gets it without a word.
    """
    if (selection is not None and selection.hooks) or _asks_for_another_path(model, cache):
        return None
    try:
        return CompiledRunner(model, cache, capacity, activations=activations, selection=selection)
    except (CannotCompile, NoCompiler) as error:
        notice_fallback("decode step", f"module by module instead of one compiled call ({error})")
        return None


def _asks_for_another_path(model: Decoder, cache: Any) -> bool:
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or parameter.dtype not in STORAGE_KINDS:
        return True
    if torch.is_autocast_enabled("cpu"):
        return True
    if cache is None:
        return isinstance(model.kv_cache_format, CacheFormat)
    return unfit_cache(cache) is not None


def unfit_cache(cache: Any, batch: int = 1) -> str | None:
    """Why the compiled step cannot work on a cache of so many sequences; None where it can."""
    if type(cache) not in (DenseCache, TokenCache, HybridCache):
        return f"it is a {type(cache).__name__}"
    others = [store for store in cache.step_layers if type(store) not in (DenseStore, TokenStore)]
    if others:
        return f"it keeps keys and values in a {type(others[0]).__name__}"
    if cache.batch != batch:
        return f"it holds {cache.batch} sequences"
    if not cache.step_layers:
        return None
    keys = cache.storage()[0]["k"]
    if keys.device.type != "cpu" or keys.dtype not in (torch.uint8, *STORAGE_KINDS):
        return f"it holds {keys.dtype} on {keys.device}"
    return None
