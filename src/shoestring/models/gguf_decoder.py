"""A decoder in a GGUF file as transformers would have it: its config, and its tensors by name and in layout.

llama.cpp turns neighbouring channels of a head where transformers turns its two halves, so the rows of the
query and key matrices of the Llama family change places; it stores the norms of Gemma as 1 + w. Both are
undone here. The names of keys and tensors are those of ggml's docs/gguf.md.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from shoestring.errors import BadModelFile
from shoestring.layers.packed_linear import PackedWeight
from shoestring.models.gguf_file import GGUFFile
from shoestring.models.mapped_file import shown
from shoestring.models.packed_gguf import can_stay_packed, packed_weight

_FIXED = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_MATRICES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TWO_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FOUR_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LEAVES = {
    "llama": _MATRICES | _TWO_NORMS,
    "qwen2": _MATRICES | _TWO_NORMS,
    "qwen3": _MATRICES | _TWO_NORMS | _HEAD_NORMS,
    "gemma3": _MATRICES | _FOUR_NORMS | _HEAD_NORMS,
}
ARCHITECTURES = tuple(_LEAVES)
"""What `general.architecture` may be. Mistral is "llama" there."""
_MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
_FREQUENCIES = "rope_freqs.weight"
_GEMMA_LOCAL_BASE = 10_000.0  # Gemma 3 report, section 2; older files do not state it
_GEMMA_PERIOD = 6  # five layers with a window to one without (the same place)
_GEMMA_27B_LAYERS = 62  # the one size whose scores are scaled by hidden_size / heads instead of head_dim


class GGUFDecoder(Mapping[str, Tensor]):
    """The tensors of a decoder in a GGUF file, by the names of transformers, decoded when asked for.

    config: as `config.json` would hold it.
    Raises: BadModelFile for an architecture not in `ARCHITECTURES`, and for metadata or tensors that no such
    model has.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.path = file.path
        self._metadata = _Metadata(file)
        self.architecture = self._metadata.text("general.architecture")
        if self.architecture not in _LEAVES:
            raise BadModelFile(
                f"{file.path} is of architecture {shown(self.architecture)}; "
                f"known are {', '.join(ARCHITECTURES)}"
            )
        self.config = _config(self._metadata, self.architecture)
        self._stored = self._names()
        self._check_heads()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name, self.dtype(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which costs nothing."""
        return self.file.shape(self._stored[name])

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is exact."""
        return self.file.dtype(self._stored[name])

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor as a copy of its own in any type."""
        stored = self._stored[name]
        if self.architecture == "gemma3" and name.endswith("norm.weight"):
            return (self.file.read(stored, torch.float32) - 1).to(dtype)
        tensor = self.file.read(stored, dtype)
        if self.architecture == "llama" and (heads := self._turned_heads(name)):
            return _halves(tensor, heads)
        return tensor

    def can_stay_packed(self, name: str) -> bool:
        """Whether a tensor is a matrix whose codes a packed layer can hold as they are."""
        return can_stay_packed(self.file, self._stored[name])

    def column_order(self, name: str) -> None:
        """Columns are always in the order of the inputs."""

    def packed(self, name: str) -> PackedWeight:
        """A quantised matrix with its codes as they are. Raises: ValueError if it cannot stay packed."""
        stored, rows = self._stored[name], None
        if self.architecture == "llama" and (heads := self._turned_heads(name)):
            rows = _halves(torch.arange(self.shape(name)[0]), heads)
        return packed_weight(self.file, stored, rows)

    def _turned_heads(self, name: str) -> int:
        """How many heads the rows of this tensor belong to, if their channels are stored in pairs; else 0."""
        if ".self_attn.q_proj." in name:
            return int(self.config["num_attention_heads"])
        return int(self.config["num_key_value_heads"]) if ".self_attn.k_proj." in name else 0

    def _names(self) -> dict[str, str]:
        leaves = {
            f"{stored}.{kind}": f"{name}.{kind}"
            for stored, name in _LEAVES[self.architecture].items()
            for kind in ("weight", "bias")
        }
        names = {}
        for stored in self.file:
            if stored == _FREQUENCIES:
                continue
            name = _FIXED.get(stored)
            if name is None and stored.startswith("blk."):
                _, layer, leaf = (*stored.split(".", 2), "")[:3]
                # The same number in two spellings (1, 01) would be two tensors of one name.
                if leaf in leaves and layer.isascii() and layer.isdigit() and str(int(layer)) == layer:
                    name = f"model.layers.{layer}.{leaves[leaf]}"
            if name is None:
                raise BadModelFile(f"{self.path}: the tensor {shown(stored)} has no place in this model")
            names[name] = stored
        return names

    def _check_heads(self) -> None:
        """What `read` relies on; whether all tensors fit the config is asked where a model is built."""
        size = self.config["head_dim"]
        for name in self:
            heads = self._turned_heads(name)
            if heads and self.shape(name)[0] != heads * size:
                raise BadModelFile(
                    f"{self.path}: {name} has {self.shape(name)[0]} rows instead of {heads} heads of {size}"
                )


def _halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows from channel pairs (0, 1), (2, 3), … of each head to its first and second half."""
    paired = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
    return paired.transpose(1, 2).reshape(tensor.shape)


class _Metadata:
    """Values of the kind they must be, or an error that names the key."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.values = file.metadata

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise BadModelFile(f"{self.file.path}: {key} is {shown(value)} instead of a text")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise BadModelFile(f"{self.file.path}: {key} is {shown(value)} instead of a count from 1 on")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
            raise BadModelFile(f"{self.file.path}: {key} is {shown(value)} instead of a positive number")
        return value

    def token(self, key: str, vocab_size: int) -> int | None:
        value = self.values.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < vocab_size):
            raise BadModelFile(f"{self.file.path}: {key} is {shown(value)}, no token of {vocab_size}")
        return value


def _config(metadata: _Metadata, architecture: str) -> dict[str, Any]:
    def key(name: str) -> str:
        return f"{architecture}.{name}"

    file = metadata.file
    if shown(metadata.values.get(key("expert_count"), 0)) != "0":
        raise BadModelFile(f"{file.path} is a mixture of experts; only dense decoders are known")
    if "token_embd.weight" not in file or len(file.shape("token_embd.weight")) != 2:
        raise BadModelFile(f"{file.path} has no matrix token_embd.weight")
    vocab_size, _ = file.shape("token_embd.weight")
    if metadata.count(key("vocab_size"), vocab_size) != vocab_size:
        raise BadModelFile(
            f"{file.path}: {key('vocab_size')} differs from the {vocab_size} rows of token_embd"
        )
    heads, hidden = metadata.count(key("attention.head_count")), metadata.count(key("embedding_length"))
    head_dim = metadata.count(key("attention.key_length"), max(1, hidden // heads))
    rotated = metadata.count(key("rope.dimension_count"), head_dim)
    if (
        metadata.count(key("attention.value_length"), head_dim) != head_dim
        or rotated != head_dim
        or head_dim % 2
    ):
        raise BadModelFile(
            f"{file.path}: heads of {head_dim} keys of which {rotated} turn, and of "
            f"{metadata.count(key('attention.value_length'), head_dim)} values are not known; all must be "
            "one even number"
        )
    layers = metadata.count(key("block_count"))
    if layers > len(file):
        raise BadModelFile(f"{file.path}: {key('block_count')} is {layers}, but it has {len(file)} tensors")
    config: dict[str, Any] = {
        "model_type": _MODEL_TYPES[architecture],
        "architectures": [_CLASSES[architecture]],
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": metadata.count(key("feed_forward_length")),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.count(key("attention.head_count_kv"), heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.count(key("context_length")),
        "rms_norm_eps": metadata.number(key("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in file,
        "dtype": "float32",
    }
    for name, stored in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = metadata.token(f"tokenizer.ggml.{stored}_token_id", vocab_size)
        if token is not None:
            config[f"{name}_token_id"] = token
    if architecture == "gemma3":
        return config | _gemma(metadata, config)
    config["rope_parameters"] = _rotation(metadata, architecture)
    config["hidden_act"] = "silu"
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file
    if architecture == "qwen3":
        config["attention_bias"] = "blk.0.attn_q.bias" in file
    return config


def _gemma(metadata: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
    layers, hidden, heads = (config[n] for n in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    period = metadata.count("gemma3.attention.sliding_window_pattern", _GEMMA_PERIOD)
    base = metadata.number("gemma3.rope.freq_base_swa", _GEMMA_LOCAL_BASE)
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": hidden // heads if layers == _GEMMA_27B_LAYERS else config["head_dim"],
        "sliding_window": metadata.count("gemma3.attention.sliding_window"),
        "layer_types": [
            "full_attention" if (layer + 1) % period == 0 else "sliding_attention" for layer in range(layers)
        ],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "rope_parameters": {
            "full_attention": _rotation(metadata, "gemma3"),
            "sliding_attention": {"rope_type": "default", "rope_theta": base},
        },
    }


def _rotation(metadata: _Metadata, architecture: str) -> dict[str, Any]:
    """`rope_parameters` of transformers. Raises: BadModelFile for a scaling that is not known."""
    base = metadata.number(
        f"{architecture}.rope.freq_base", 1_000_000.0 if architecture == "gemma3" else 10_000.0
    )
    plain = {"rope_type": "default", "rope_theta": base}
    if _FREQUENCIES in metadata.file:
        return _divided(metadata, plain)
    scaling = f"{architecture}.rope.scaling"
    kind = metadata.text(f"{scaling}.type", "none")
    if kind == "none":
        return plain
    if kind not in ("linear", "yarn"):
        raise BadModelFile(
            f"{metadata.file.path}: {scaling}.type is {shown(kind)}; known are none, linear, yarn"
        )
    scaled = plain | {"rope_type": kind, "factor": metadata.number(f"{scaling}.factor")}
    if kind == "yarn":
        scaled["original_max_position_embeddings"] = metadata.count(f"{scaling}.original_context_length")
    return scaled


def _divided(metadata: _Metadata, plain: dict[str, Any]) -> dict[str, Any]:
    """The rule behind `rope_freqs.weight`, which stores by how much each frequency is divided.

    Llama 3.1 and 3.2 differ in their factor alone (8, 32). Source: the Llama 3 reference code, apply_scaling.
    """
    path, stored = metadata.file.path, metadata.file.read(_FREQUENCIES, torch.float64).flatten()
    if bool((stored == 1).all()):
        return plain
    for factor in (8.0, 32.0):
        rule = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        expected = _llama3_divisors(plain["rope_theta"], 2 * len(stored), rule)
        if torch.allclose(stored, expected, rtol=1e-4):
            return plain | rule
    raise BadModelFile(f"{path}: {_FREQUENCIES} follows no rule that is known (Llama 3.1 and 3.2)")


def _llama3_divisors(base: float, head_dim: int, rule: Mapping[str, Any]) -> Tensor:
    """Long waves are slowed by `factor`, short ones not, those between by something between."""
    frequencies = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turns = rule["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rule["low_freq_factor"], rule["high_freq_factor"]
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - share) / rule["factor"] + share)
