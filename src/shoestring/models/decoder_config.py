"""The numbers that make a decoder of the Llama family, and how a `config.json` says them."""

import enum
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoestring.errors import BadModelFile
from shoestring.layers.mamba.grouped_mamba import MambaShape
from shoestring.layers.rotary import LinearScaling, Llama3Scaling, Rope, RopeScaling, YarnScaling
from shoestring.models.layer_layout import HYBRID, LayerKind, Layout, read_layout, read_mamba


class Activation(enum.Enum):
    """The gate of the feed-forward network."""

    SILU = "silu"
    GELU_TANH = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder: sizes, and what its family does differently. Names are those of `config.json`.

    windows: per layer, how many positions a token sees, its own included; None: all before it. ropes: per
    layer, how positions become angles. qkv_bias, output_bias, mlp_bias: which projections have a bias.
    qk_norm: queries and keys are normalised per head. post_norms: attention and feed-forward are normalised
    on their way out as well. norm_offset: what the stored gains of norms lack (Gemma: 1). embedding_scale:
    what embeddings are multiplied by. query_scale: what scores are multiplied by; None: 1/√head_dim.
    layout: what mixes the tokens of each layer, by default attention everywhere. mamba: sizes of the mixers
    of the other layers.

    Raises: ValueError for numbers that do not make a decoder, naming the field.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    ropes: tuple[Rope, ...]
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    model_type: str = "llama"
    activation: Activation = Activation.SILU
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    query_scale: float | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    layout: Layout = ()
    mamba: MambaShape = MambaShape()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} does not divide "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary positions pair its channels.")
        if not self.layout:
            object.__setattr__(self, "layout", (LayerKind.ATTENTION,) * self.num_hidden_layers)
        for name in ("windows", "ropes", "layout"):
            if len(getattr(self, name)) != self.num_hidden_layers:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries; num_hidden_layers is "
                    f"{self.num_hidden_layers}."
                )
        for window in self.windows:
            if window is not None and window < 1:
                raise ValueError(f"windows holds {window}; a window must be 1 or more positions.")
        if not self.rms_norm_eps > 0:
            raise ValueError(f"rms_norm_eps={self.rms_norm_eps} must be above 0.")
        if LayerKind.MAMBA in self.layout:
            self.mamba.check(self.num_attention_heads, self.num_key_value_heads, self.head_dim)

    @property
    def is_hybrid(self) -> bool:
        """Whether a layer has no attention."""
        return any(kind is not LayerKind.ATTENTION for kind in self.layout)

    def layers_of(self, kind: LayerKind) -> tuple[int, ...]:
        """The numbers of the layers of a kind."""
        return tuple(index for index, own in enumerate(self.layout) if own is kind)

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale

    @property
    def transformers_class(self) -> str:
        """The class of the transformers library that this model is."""
        return FAMILIES[self.model_type].transformers_class

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "DecoderConfig":
        """Read a `config.json`, of any version of transformers.

        Raises: BadModelFile for an architecture that is not of the family, naming those that are, and for a
        number that is missing or impossible, naming it.
        """
        kind = base_type(config.get("model_type"))
        if kind == "gemma3" and isinstance(config.get("text_config"), Mapping):
            tied = {"tie_word_embeddings": config.get("tie_word_embeddings", True)}
            config, kind = {**tied, **config["text_config"], "model_type": "gemma3_text"}, "gemma3_text"
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise BadModelFile(
                f"model_type {kind!r} is not one this library runs itself; it runs {', '.join(FAMILIES)}."
            )
        family = FAMILIES[kind]
        fields = _Fields({**family.defaults, **{k: v for k, v in config.items() if v is not None}})
        _refuse_unsupported(fields)
        layers = fields.count("num_hidden_layers")
        heads, hidden = fields.count("num_attention_heads"), fields.count("hidden_size")
        head_dim = fields.count("head_dim", hidden // heads)
        sliding = _sliding_layers(fields, kind, layers)
        window = fields.count("sliding_window") if any(sliding) else None
        local, everywhere = _ropes(fields, kind)
        bias = family.qkv_bias or fields.flag("attention_bias", False)
        gemma = kind == "gemma3_text"
        try:
            return cls(
                vocab_size=fields.count("vocab_size"),
                hidden_size=hidden,
                intermediate_size=fields.count("intermediate_size"),
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=fields.count("num_key_value_heads", heads),
                head_dim=head_dim,
                windows=tuple(window if slides else None for slides in sliding),
                ropes=tuple(local if slides else everywhere for slides in sliding),
                max_position_embeddings=fields.count("max_position_embeddings"),
                rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
                tie_word_embeddings=fields.flag("tie_word_embeddings", False),
                model_type=kind,
                activation=_activation(fields),
                qkv_bias=bias,
                output_bias=bias and not family.qkv_bias,
                mlp_bias=fields.flag("mlp_bias", False),
                qk_norm=family.qk_norm,
                post_norms=gemma,
                norm_offset=1.0 if gemma else 0.0,
                embedding_scale=hidden**0.5 if gemma else 1.0,
                query_scale=fields.positive("query_pre_attn_scalar") ** -0.5 if gemma else None,
                eos_token_id=_ends(fields),
                layout=() if fields.get("layout") is None else read_layout(fields.get("layout"), layers),
                mamba=MambaShape() if fields.get("mamba") is None else read_mamba(fields.get("mamba")),
            )
        except ValueError as error:
            raise BadModelFile(f"config: {error}") from error


@dataclass(frozen=True)
class Family:
    """What a `model_type` means. defaults: fields that its configurations may leave out."""

    transformers_class: str
    defaults: Mapping[str, Any]
    qkv_bias: bool = False
    qk_norm: bool = False


_GEMMA_3 = {
    "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 131_072, "sliding_window": 4096, "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", {"max_position_embeddings": 2048}),
    "mistral": Family("MistralForCausalLM", {"max_position_embeddings": 131_072}),
    "qwen2": Family("Qwen2ForCausalLM", {"max_position_embeddings": 32_768}, qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", {"max_position_embeddings": 32_768, "head_dim": 128}, qk_norm=True),
    "gemma3_text": Family("Gemma3ForCausalLM", _GEMMA_3, qk_norm=True),
}
"""By `model_type`."""


def base_type(model_type: Any) -> Any:
    """The family of a `model_type`, which begins with `HYBRID` where layers are not all attention."""
    return model_type.removeprefix(HYBRID) if isinstance(model_type, str) else model_type


_LARGEST = sys.float_info.max


class _Fields:
    """The fields of a configuration, checked as they are read."""

    def __init__(self, fields: Mapping[str, Any], where: str = "config") -> None:
        self._fields, self._where = fields, where

    def get(self, name: str) -> Any:
        return self._fields.get(name)

    def count(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**63:
            raise self._bad(name, value, "a whole number of 1 or more")
        return value

    def whole(self, name: str) -> int:
        value = self._value(name, None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._bad(name, value, "a whole number")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
            raise self._bad(name, value, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._bad(name, value, "true or false")
        return value

    def inner(self, name: str) -> "_Fields":
        value = self._fields.get(name)
        if value is None:
            return _Fields({}, name)
        if not isinstance(value, Mapping):
            raise self._bad(name, value, "a table of fields")
        return _Fields({k: v for k, v in value.items() if v is not None}, name)

    def _value(self, name: str, default: Any) -> Any:
        value = self._fields.get(name, default)
        if value is None:
            raise BadModelFile(f"{self._where}: {name} is missing.")
        return value

    def _bad(self, name: str, value: Any, right: str) -> BadModelFile:
        return BadModelFile(f"{self._where}: {name} is {value!r}; it must be {right}.")


def _refuse_unsupported(fields: _Fields) -> None:
    """What would change the output and is not built here."""
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if fields.get(name) is not None:
            raise BadModelFile(f"config: {name} is {fields.get(name)!r}; soft caps are not supported.")
    if fields.get("use_bidirectional_attention"):
        raise BadModelFile("config: use_bidirectional_attention is true; only causal attention is supported.")


def _ends(fields: _Fields) -> int | tuple[int, ...] | None:
    """The tokens that end an output: one, several or none."""
    ends = fields.get("eos_token_id")
    if ends is None or type(ends) is int:
        return ends
    if isinstance(ends, list | tuple) and all(type(token) is int for token in ends):
        return tuple(ends)
    raise BadModelFile(f"config: eos_token_id is {ends!r}; it must be a token or a list of tokens.")


def _activation(fields: _Fields) -> Activation:
    name = fields.get("hidden_activation") or fields.get("hidden_act") or Activation.SILU.value
    try:
        return Activation(name)
    except ValueError as error:
        known = ", ".join(a.value for a in Activation)
        raise BadModelFile(f"config: hidden_act is {name!r}; supported are {known}.") from error


def _sliding_layers(fields: _Fields, kind: str, layers: int) -> list[bool]:
    """Which layers see a window only."""
    if kind == "llama" or (kind == "mistral" and fields.get("sliding_window") is None):
        return [False] * layers
    if kind == "mistral":
        return [True] * layers
    if kind in ("qwen2", "qwen3") and not fields.flag("use_sliding_window", False):
        return [False] * layers
    kinds = fields.get("layer_types")
    if kinds is None and kind == "gemma3_text":
        period = fields.count("sliding_window_pattern", 6)
        return [bool((layer + 1) % period) for layer in range(layers)]
    if kinds is None:
        first = 28 if fields.get("max_window_layers") is None else fields.whole("max_window_layers")
        return [layer >= first for layer in range(layers)]
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list | tuple) or len(kinds) != layers or any(k not in known for k in kinds):
        raise BadModelFile(
            f"config: layer_types is {kinds!r}; it must name {layers} layers, each {' or '.join(known)}."
        )
    return [name == "sliding_attention" for name in kinds]


def _ropes(fields: _Fields, kind: str) -> tuple[Rope, Rope]:
    """The angles of layers with a window, and of all others."""
    new = fields.inner("rope_parameters")
    if kind == "gemma3_text":
        local, wide = new.inner("sliding_attention"), new.inner("full_attention")
        old = fields.positive("rope_local_base_freq", 10_000.0)
        base = fields.positive("rope_theta", 1_000_000.0)
        scaled = wide if wide.get("rope_type") or wide.get("factor") else fields.inner("rope_scaling")
        return (
            Rope(local.positive("rope_theta", old), _scaling(local, fields)),
            Rope(wide.positive("rope_theta", base), _scaling(scaled, fields)),
        )
    base = new.positive("rope_theta", fields.positive("rope_theta", 10_000.0))
    rope = Rope(base, _scaling(new if new.get("rope_type") else fields.inner("rope_scaling"), fields))
    return rope, rope


def _scaling(rope: _Fields, fields: _Fields) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    for holder in (rope, fields):
        if holder.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise BadModelFile(
                f"config: partial_rotary_factor is {holder.get('partial_rotary_factor')!r}; "
                "only whole heads are rotated here."
            )
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(rope.positive("factor"))
    if kind not in ("llama3", "yarn"):
        raise BadModelFile(f"config: rope_type is {kind!r}; supported are default, linear, llama3 and yarn.")
    length = rope.count(
        "original_max_position_embeddings",
        fields.count("original_max_position_embeddings", fields.count("max_position_embeddings")),
    )
    if kind == "llama3":
        low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
        if high <= low:
            raise BadModelFile(f"rope_scaling: high_freq_factor={high} must be above low_freq_factor={low}.")
        return Llama3Scaling(rope.positive("factor"), low, high, length)
    return _yarn(rope, length, fields.count("max_position_embeddings"))


def _yarn(rope: _Fields, length: int, longest: int) -> YarnScaling:
    factor = rope.positive("factor", longest / length)
    gain = rope.positive("attention_factor") if rope.get("attention_factor") else None
    if gain is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        plain = YarnScaling(factor, length).gain - 1.0
        gain = (1 + rope.positive("mscale") * plain) / (1 + rope.positive("mscale_all_dim") * plain)
    return YarnScaling(
        factor,
        length,
        rope.positive("beta_fast", 32.0),
        rope.positive("beta_slow", 1.0),
        gain,
        rope.flag("truncate", True),
    )
