"""One way to run any causal language model a few tokens at a time: feed tokens, get the last logits."""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.quantised_cache import QuantCache
from shoestring.generation.slot_cache import SlotCache
from shoestring.generation.transformers_cache import TransformersCache
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want
from shoestring.models.hooks import Context
from shoestring.models.protocols import KVCache
from shoestring.numbers.cache_format import CacheFormat


@runtime_checkable
class Runner(Protocol):
    """A model and the cache of one sequence."""

    device: torch.device
    vocab_size: int
    context: int | None
    """The most tokens, prompt and output together, that the model was made for; None if it says none."""
    end_tokens: frozenset[int]
    """Tokens with which the model ends its output."""

    def feed(self, ids: Int[Tensor, "1 n"]) -> Float[Tensor, "1 vocab"]:
        """Append tokens to the sequence; the logits of the token that follows."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache holds now."""
        ...


class TransformersRunner:
    """A causal language model of the transformers library, through its own cache.

    cache: a transformers `Cache`, empty; by default the library's own, or one in the model's
    `kv_cache_format` where a recipe has set that.
    """

    def __init__(self, model: nn.Module, cache: Any = None, capacity: int = 0) -> None:
        config: Any = model.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.model, self.device = model, next(model.parameters()).device
        self.vocab_size: int = text.vocab_size
        self.context: int | None = getattr(text, "max_position_embeddings", None)
        self.end_tokens = end_tokens(getattr(model, "generation_config", None), config)
        self.cache = new_cache(model, capacity) if cache is None else cache
        self._argument = cache_argument(model)
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            self._options["logits_to_keep"] = 1

    def feed(self, ids: Int[Tensor, "1 n"]) -> Float[Tensor, "1 vocab"]:
        """Append tokens to the sequence; the logits of the token that follows."""
        return self.model(input_ids=ids, **{self._argument: self.cache}, **self._options).logits[:, -1]

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache holds now."""
        if isinstance(self.cache, TransformersCache):
            return self.cache.nbytes
        tensors = [t for layer in self.cache.layers for t in vars(layer).values() if isinstance(t, Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


class DecoderRunner:
    """Our own decoder, through a cache of ours.

    cache: an empty `KVCache` for one sequence; by default a new one in the model's `kv_cache_format`. hooks,
    ctx: passed on to every forward pass.

    Raises: TypeError for a cache of another kind.
    """

    def __init__(
        self,
        model: Decoder,
        cache: Any = None,
        capacity: int = 0,
        *,
        hooks: Sequence[object] = (),
        ctx: Context | None = None,
    ) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.vocab_size: int = model.cfg.vocab_size
        self.context: int | None = model.cfg.max_position_embeddings
        self.end_tokens = end_tokens(model.generation_config, model.config, model.cfg)
        if cache is not None and not isinstance(cache, KVCache):
            raise TypeError(
                f"a {type(cache).__name__} is no cache of a Decoder; pass a DenseCache or QuantCache."
            )
        self.cache: KVCache = decoder_cache(model, capacity=capacity) if cache is None else cache
        self.hooks, self.ctx = tuple(hooks), ctx

    def feed(self, ids: Int[Tensor, "1 n"]) -> Float[Tensor, "1 vocab"]:
        """Append tokens to the sequence; the logits of the token that follows."""
        out = self.model(ids, cache=self.cache, ctx=self.ctx, hooks=self.hooks, want=Want(logits="last"))
        return out.logits[:, -1]

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache holds now."""
        return self.cache.nbytes()


def make_runner(model: nn.Module, cache: Any = None, capacity: int = 0) -> Runner:
    """The runner for a model; capacity: tokens that a new cache should have room for.

    Raises: TypeError for a model that is no causal language model."""
    if isinstance(model, Decoder):
        return DecoderRunner(model, cache, capacity)
    if hasattr(model, "config") and "input_ids" in inspect.signature(model.forward).parameters:
        return TransformersRunner(model, cache, capacity)
    name = type(model).__name__
    raise TypeError(
        f"{name} does not generate; pass a Decoder or a causal language model of the transformers library."
    )


def decoder_cache(
    model: Decoder, form: CacheFormat | None = None, *, batch: int = 1, capacity: int = 0
) -> SlotCache:
    """An empty cache for a decoder, in `form` or else in its `kv_cache_format`; plain where it has none.

    Raises: ValueError where the format does not fit the model's heads.
    """
    cfg, form = model.cfg, form or model.kv_cache_format
    parameter = next(model.parameters())
    shape = cfg.num_hidden_layers, batch, cfg.num_key_value_heads, cfg.head_dim
    options: dict[str, Any] = {
        "dtype": parameter.dtype,
        "device": parameter.device,
        "capacity": capacity,
    }
    return DenseCache(*shape, **options) if form is None else QuantCache(*shape, form, **options)


def new_cache(model: nn.Module, capacity: int = 0) -> Any:
    """An empty cache for a transformers model: in its `kv_cache_format`, else the library's own."""
    from transformers import DynamicCache

    config: Any = model.config
    form = getattr(model, "kv_cache_format", None)
    if form is None:
        return DynamicCache(config=config)
    return TransformersCache(form, capacity=capacity, config=config)


def cache_argument(model: nn.Module) -> str:
    """What the model's forward calls its cache: the name changed in the transformers library."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def end_tokens(*configs: Any) -> frozenset[int]:
    """The end tokens that the first of these configurations names."""
    for config in configs:
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            return frozenset([ends] if isinstance(ends, int) else ends)
    return frozenset()
