"""Lets `from_pretrained` of transformers read folders that Shoestring saved; importing this registers it."""

from typing import Any

import torch
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from shoestring.compression.apply import forget_tied_parameters
from shoestring.compression.module_formats import Document, describe_modules, install_modules
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat

QUANT_METHOD = "shoestring"
FORMAT_VERSION = 1


class ShoestringConfig(QuantizationConfigMixin):
    """The `quantization_config` of a saved model.

    modules: what `describe_modules` gives. kv_cache: the fields of a `CacheFormat` or a
    `TokenCacheFormat`, or None.
    Raises: ValueError for a version that this one does not know.
    """

    def __init__(
        self,
        modules: Document | None = None,
        kv_cache: dict[str, int] | None = None,
        version: int = FORMAT_VERSION,
        quant_method: str = QUANT_METHOD,
    ) -> None:
        if version != FORMAT_VERSION:
            raise ValueError(
                f"the model was saved in format {version} of Shoestring; this version reads {FORMAT_VERSION}."
            )
        self.quant_method = quant_method  # type: ignore[assignment]
        self.version = version
        self.modules = modules or {}
        self.kv_cache = kv_cache

    @classmethod
    def of(cls, model: torch.nn.Module) -> "ShoestringConfig":
        """The config of a rewritten model."""
        cache = getattr(model, "kv_cache_format", None)
        return cls(describe_modules(model), None if cache is None else dict(vars(cache)))


class ShoestringQuantizer(HfQuantizer):
    """Puts the packed modules in place before transformers loads the stored tensors into them."""

    quantization_config: ShoestringConfig

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        document = self.quantization_config.modules
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        install_modules(model, document, dtype=dtype, device="meta")
        tied = tuple(name for name, entry in document.items() if "tied_to" in entry)
        if tied:
            leaders = tuple(document[name]["tied_to"] for name in tied)
            forget_tied_parameters(model, (*tied, *leaders))

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.quantization_config.kv_cache is not None:
            fields = self.quantization_config.kv_cache
            form = TokenCacheFormat if "key_bits" in fields else CacheFormat
            model.kv_cache_format = form(**fields)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def register() -> None:
    """Make `quant_method: shoestring` known to transformers; done once, on import."""
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(QUANT_METHOD)(ShoestringConfig)
        register_quantizer(QUANT_METHOD)(ShoestringQuantizer)


register()
