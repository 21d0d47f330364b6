"""Write a model of the Llama family as a GGUF file for llama.cpp: the packed weights as they are.

llama.cpp rotates neighbouring channels where transformers rotates the two halves of a head, so the rows of
the query and key matrices change places; packed rows move without being decoded.
"""

import os
from collections.abc import Callable
from typing import Any, cast

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from shoestring.compression.gguf_blocks import BLOCK, KINDS, gguf_blocks
from shoestring.compression.gguf_tokenizer import build_tokenizer, copy_tokenizer
from shoestring.files import replacing_file
from shoestring.layers.low_rank.low_rank_linear import LowRankLinear
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear

Kind = gguf.GGMLQuantizationType
Encoder = Callable[[str, nn.Module, Tensor], tuple[np.ndarray, Kind]]
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
PLAIN_KINDS = {torch.float32: Kind.F32, torch.float16: Kind.F16, torch.bfloat16: Kind.BF16}


def export_gguf(model: nn.Module, tokenizer: Any, path: str | os.PathLike[str]) -> None:
    """Write the model with exactly its weights: packed ones as Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0, others plain.

    tokenizer: a fast byte-level BPE tokenizer of transformers, or the path of a GGUF file to copy it from.

    Raises: ValueError if the model is not of the Llama family, or naming each layer whose format it has not.
    """
    modules = _named_tensors(model)
    unknown = [f"{name!r} ({reason})" for name, m in modules.items() if (reason := _why_not_exact(m))]
    if unknown:
        raise ValueError(
            f"GGUF cannot hold the formats of {len(unknown)} layers: {', '.join(unknown)}; apply formats "
            "with groups of 32 and 16-bit scales (4, 5 or 8 bits), or use export_gguf_q8."
        )
    _write(model, tokenizer, path, modules, _exact)


def export_gguf_q8(model: nn.Module, tokenizer: Any, path: str | os.PathLike[str]) -> None:
    """Write the model as `export_gguf` does, and what GGUF cannot hold decoded and rounded to Q8_0.

    Raises: ValueError if the model is not of the Llama family, or naming layers whose inputs are no multiple
    of 32.
    """
    modules = _named_tensors(model)
    uneven = [repr(name) for name, m in modules.items() if _why_not_exact(m) and _weight(m).shape[1] % BLOCK]
    if uneven:
        raise ValueError(f"the inputs of {', '.join(uneven)} are no multiple of {BLOCK}, as Q8_0 needs.")
    _write(model, tokenizer, path, modules, _exact_or_q8)


def check_exportable(model: nn.Module, tokenizer: Any) -> None:
    """Find out before long work whether the model, once in formats that GGUF has, can be exported.

    Raises: ValueError, as `export_gguf` does for the kind of model or tokenizer.
    """
    _named_tensors(model)
    _add_tokenizer(gguf.GGUFWriter(None, "llama"), tokenizer, cast(Any, model.config).vocab_size)


def gguf_tensor_bytes(model: nn.Module) -> int:
    """Bytes of the tensor data that `export_gguf` writes, padding included; not tokenizer and header.

    Raises: as `export_gguf` does for the kind of model.
    """
    return sum(_padded(_exported_bytes(module)) for module in _named_tensors(model).values())


def gguf_extra_bytes(model: nn.Module) -> int:
    """Upper bound of what the tensor data of a GGUF takes beyond the tensors of the model: vectors are
    float32 there, and every tensor is padded. Raises: as `gguf_tensor_bytes`."""
    weights = [_weight(module) for module in _named_tensors(model).values()]
    widened = sum((4 - w.element_size()) * w.numel() for w in weights if w.dim() == 1)
    return max(0, widened) + len(weights) * (gguf.GGUF_DEFAULT_ALIGNMENT - 1)


def _exported_bytes(module: nn.Module) -> int:
    if isinstance(module, PackedLinear | PackedEmbedding):
        return module.packed.form.nbytes(module.packed.rows, module.packed.cols)
    weight = _weight(module)
    return weight.numel() * (4 if weight.dim() == 1 else weight.element_size())


def _padded(nbytes: int) -> int:
    return -(-nbytes // gguf.GGUF_DEFAULT_ALIGNMENT) * gguf.GGUF_DEFAULT_ALIGNMENT


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, vocab_size: int) -> None:
    if isinstance(tokenizer, str | os.PathLike):
        copy_tokenizer(writer, tokenizer)
    else:
        build_tokenizer(writer, tokenizer, vocab_size)


def _named_tensors(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold weights by their names in the model. Raises: ValueError if it is no Llama."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) != "llama":
        kind = getattr(config, "model_type", type(model).__name__)
        raise ValueError(f"GGUF export knows models of type 'llama', not {kind!r}.")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"GGUF export knows plain rotary positions, not rope_type={rope['rope_type']!r}.")
    names = ["model.embed_tokens", "model.norm"]
    for index in range(config.num_hidden_layers):
        names += [f"model.layers.{index}.{leaf}" for leaf in LAYER_NAMES]
    modules = {name: model.get_submodule(name) for name in names}
    if not config.tie_word_embeddings:
        modules["lm_head"] = model.get_submodule("lm_head")
    if biased := [n for n, m in modules.items() if getattr(m, "bias", None) is not None]:
        raise ValueError(f"GGUF export knows no biases, but {', '.join(map(repr, biased))} have them.")
    return modules


def _why_not_exact(module: nn.Module) -> str | None:
    if isinstance(module, PackedLinear | PackedEmbedding):
        form = module.packed.form
        described = f"{form.bits} bits, groups of {form.group_size}, {form.zero_point.value}"
        return None if form in KINDS else f"{described}, {form.scale_bits}-bit scales"
    return "low rank" if isinstance(module, LowRankLinear) else None


def _weight(module: nn.Module) -> Tensor:
    return cast(Tensor, module.weight).detach().cpu()


def _exact(name: str, module: nn.Module, rows: Tensor) -> tuple[np.ndarray, Kind]:
    if isinstance(module, PackedLinear | PackedEmbedding):
        return gguf_blocks(module.packed, rows)
    weight = _weight(module)
    if weight.dim() == 1:
        return weight.float().numpy(), Kind.F32
    kind = PLAIN_KINDS[weight.dtype]
    weight = weight[rows].contiguous()
    if kind is Kind.BF16:
        return weight.view(torch.uint8).numpy(), kind
    return weight.numpy(), kind


def _exact_or_q8(name: str, module: nn.Module, rows: Tensor) -> tuple[np.ndarray, Kind]:
    if _why_not_exact(module) is None:
        return _exact(name, module, rows)
    weight = _weight(module).float()[rows]
    return gguf.quants.quantize(weight.numpy(), Kind.Q8_0), Kind.Q8_0


def _write(
    model: nn.Module,
    tokenizer: Any,
    path: str | os.PathLike[str],
    modules: dict[str, nn.Module],
    encode: Encoder,
) -> None:
    config: Any = model.config
    with replacing_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        _add_config(writer, config)
        _add_tokenizer(writer, tokenizer, config.vocab_size)
        for name, module in modules.items():
            rows = torch.arange(_weight(module).shape[0])
            if name.endswith(("q_proj", "k_proj")):
                heads = config.num_attention_heads if name.endswith("q_proj") else config.num_key_value_heads
                rows = rows.reshape(heads, 2, -1).transpose(1, 2).reshape(-1)
            data, kind = encode(name, module, rows)
            writer.add_tensor(f"{_gguf_name(name)}.weight", data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_config(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _gguf_name(name: str) -> str:
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if name in fixed:
        return fixed[name]
    _, _, index, leaf = name.split(".", 3)
    return f"blk.{index}.{LAYER_NAMES[leaf]}"
