"""Store old keys and values of the cache in few bits while generating."""

from dataclasses import dataclass

from torch import nn

from shoestring.compression.recipe import ModelRecipe
from shoestring.numbers.cache_format import CacheFormat


@dataclass(frozen=True)
class KVQuantize(ModelRecipe):
    """Mark a model so that generation keeps its cache in a `CacheFormat`, found as `model.kv_cache_format`.

    bits, group_size, tail_tokens: as in `CacheFormat`. No weight changes.
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
