"""One way to run any causal language model a few tokens at a time: feed tokens, get the last logits."""

import inspect
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.generation.compiled_runner import compiled_runner
from shoestring.generation.decoder_runner import DecoderRunner, end_tokens
from shoestring.generation.evicting_cache import CachePolicy
from shoestring.kernels.grouped_linear import Activations
from shoestring.models.decoder import Decoder


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

    def prompt_is_read(self) -> None:
        """Say that what is fed from now on is decoded tokens."""
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

    def prompt_is_read(self) -> None:
        """Nothing here depends on it."""

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache holds now."""
        from shoestring.generation.transformers_cache import TransformersCache

        if isinstance(self.cache, TransformersCache):
            return self.cache.nbytes
        tensors = [t for layer in self.cache.layers for t in vars(layer).values() if isinstance(t, Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def make_runner(
    model: nn.Module,
    cache: Any = None,
    capacity: int = 0,
    activations: Activations = Activations.FLOAT32,
    selection: CachePolicy | None = None,
) -> Runner:
    """The runner for a model: for a `Decoder` on the CPU the compiled step, where it can do what is asked.

    capacity: tokens that a new cache should have room for. activations: in what the inputs of packed layers
    take part in the compiled step. selection: what is kept of the cache; module by module where it looks into
    attention.

    Raises: TypeError for a model that is no causal language model, or a selection for one that is no
    `Decoder`; ValueError for a selection that looks into attention, with rounded activations."""
    if selection is not None:
        if not isinstance(model, Decoder):
            raise TypeError(
                f"selection needs a Decoder, not a {type(model).__name__}; load the model as one."
            )
        if activations is not Activations.FLOAT32 and selection.hooks:
            raise ValueError(
                f"{type(selection).__name__} looks into attention, which is computed in float32; use "
                "activation_bits=32 with it."
            )
        runner = compiled_runner(model, cache, capacity, activations, selection)
        return runner or DecoderRunner(model, cache, capacity, selection=selection)
    if isinstance(model, Decoder):
        return compiled_runner(model, cache, capacity, activations) or DecoderRunner(model, cache, capacity)
    if hasattr(model, "config") and "input_ids" in inspect.signature(model.forward).parameters:
        return TransformersRunner(model, cache, capacity)
    name = type(model).__name__
    raise TypeError(
        f"{name} does not generate; pass a Decoder or a causal language model of the transformers library."
    )


def new_cache(model: nn.Module, capacity: int = 0) -> Any:
    """An empty cache for a transformers model: in its `kv_cache_format`, else the library's own."""
    from transformers import DynamicCache

    from shoestring.generation.transformers_cache import TransformersCache

    config: Any = model.config
    form = getattr(model, "kv_cache_format", None)
    if form is None:
        return DynamicCache(config=config)
    return TransformersCache(form, capacity=capacity, config=config)


def cache_argument(model: nn.Module) -> str:
    """What the model's forward calls its cache: the name changed in the transformers library."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
