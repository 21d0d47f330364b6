"""Store keys and values of the cache in few bits while generating."""

from dataclasses import dataclass

from torch import nn

from shoestring.compression.recipe import ModelRecipe
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat


class CacheRecipe(ModelRecipe):
    """A recipe that marks a model, so that generation keeps its cache in `form`, found as
    `model.kv_cache_format`. No weight changes."""

    @property
    def form(self) -> CacheFormat | TokenCacheFormat:
        """The storage format of keys and values."""
        raise NotImplementedError

    def why_not_model(self, model: nn.Module) -> str | None:
        config = getattr(model, "config", None)
        heads = getattr(config, "num_attention_heads", None)
        if heads is None:
            return f"{type(model).__name__} has no num_attention_heads in a config: no KV cache to quantise."
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads  # type: ignore[union-attr]
        return self.form.why_not(head_dim)

    def rewrite_model(self, model: nn.Module) -> None:
        if reason := self.why_not_model(model):
            raise ValueError(reason)
        model.kv_cache_format = self.form  # type: ignore[assignment]


@dataclass(frozen=True)
class KVQuantize(CacheRecipe):
    """Old tokens in codes that share scales with their neighbours, the last ones in full.

    bits, group_size, tail_tokens: as in `CacheFormat`.
    """

    bits: int = 4
    group_size: int = 32
    tail_tokens: int = 128

    def __post_init__(self) -> None:
        _ = self.form

    @property
    def form(self) -> CacheFormat:
        """The storage format of keys and values."""
        return CacheFormat(self.bits, self.group_size, self.tail_tokens)


@dataclass(frozen=True)
class KVQuantizeTokens(CacheRecipe):
    """Every token in codes on a grid of its own, which the compiled decode step reads as they are.

    key_bits, value_bits: as in `TokenCacheFormat`.
    """

    key_bits: int = 8
    value_bits: int = 8

    def __post_init__(self) -> None:
        _ = self.form

    @property
    def form(self) -> TokenCacheFormat:
        """The storage format of keys and values."""
        return TokenCacheFormat(self.key_bits, self.value_bits)
