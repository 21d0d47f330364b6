"""A model large enough to stand out in the memory of a process, and the step that loads it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SIZES = {"vocab_size": 16_384, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
HEADS, HEAD_DIM = 8, 64
_LAYER = 4 * 512 * 512 + 3 * 512 * 2048 + 2 * 512
WEIGHT_BYTES = 4 * (SIZES["vocab_size"] * 512 + 8 * _LAYER + 512)
LARGEST_BYTES = 4 * SIZES["vocab_size"] * 512


def write(form: str, folder: Path) -> Path:
    """A folder, in float32 or bfloat16, or a GGUF file of 8-bit blocks."""
    hidden, inside = SIZES["hidden_size"], SIZES["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (SIZES["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(SIZES["num_hidden_layers"]):
        for name in ("q", "k", "v", "o"):
            shapes[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = (hidden, hidden)
        for name in ("gate", "up"):
            shapes[f"model.layers.{layer}.mlp.{name}_proj.weight"] = (inside, hidden)
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (hidden, inside)
        for name in ("input", "post_attention"):
            shapes[f"model.layers.{layer}.{name}_layernorm.weight"] = (hidden,)
    if form == "gguf":
        return _write_gguf(shapes, folder)
    dtype = torch.float32 if form == "safetensors" else torch.bfloat16
    save_file(
        {name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()}, folder / "model.safetensors"
    )
    config = SIZES | {
        "model_type": "llama", "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "head_dim": HEAD_DIM, "max_position_embeddings": 128, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _write_gguf(shapes: dict[str, tuple[int, ...]], folder: Path) -> Path:
    import gguf
    import numpy as np

    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(128)
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    leaves = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.startswith("model.layers."):
            _, _, layer, leaf = module.split(".", 3)
            stored = f"blk.{layer}.{leaves[leaf]}.weight"
        else:
            stored = {"model.embed_tokens": "token_embd.weight", "model.norm": "output_norm.weight"}[module]
        if len(shape) == 1:
            writer.add_tensor(stored, np.ones(shape, dtype=np.float32))
        else:
            blocks = np.ones((shape[0], shape[1] // 32 * 34), dtype=np.uint8)
            writer.add_tensor(stored, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def loads(path: str, form: str):
    """The step of `resident_memory`: load the model and touch every weight."""
    import transformers  # noqa: F401  (what importing it takes is not what loading takes)
    from transformers import AutoConfig, GenerationConfig

    from shoestring.models.load import load_decoder

    AutoConfig.for_model("llama")
    GenerationConfig()
    dtype = None if form == "safetensors" else torch.float32

    def step() -> None:
        decoder = load_decoder(path, dtype)
        assert sum(float(p.sum()) for p in decoder.parameters()) != 0

    return step
