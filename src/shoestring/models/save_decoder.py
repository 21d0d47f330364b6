"""A decoder as a folder that `load_decoder` reads back bit for bit, hybrids included."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from shoestring.files import replacing_folder
from shoestring.layers.rotary import LinearScaling, Rope
from shoestring.models.checkpoint import CONFIG
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.layer_layout import HYBRID, LayerKind, write_layout, write_mamba
from shoestring.models.load import expected_shapes
from shoestring.models.safetensors_file import SINGLE


def save_decoder(decoder: Decoder, folder: str | os.PathLike[str], tokenizer: Any = None) -> Path:
    """Write `config.json` (a hybrid's with `layout` and `mamba`), weights and tokenizer, whole or not at all.

    A hybrid's `model_type` begins with "hybrid_", so that other libraries refuse it instead of filling it up
    with random attention.

    Raises: TypeError for rewritten modules, which need a fitted folder; ValueError for a configuration that a
    `config.json` cannot say, naming the field.
    """
    _require_plain(decoder)
    document = config_document(decoder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()}
    if decoder.cfg.tie_word_embeddings:
        del tensors["lm_head.weight"]
    with replacing_folder(folder) as temporary:
        save_file(tensors, temporary / SINGLE, metadata={"format": "pt"})
        (temporary / CONFIG).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        if decoder.generation_config is not None:
            decoder.generation_config.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
    return Path(folder)


def config_document(decoder: Decoder) -> dict[str, Any]:
    """What `config.json` holds. Raises: ValueError as `save_decoder`."""
    cfg = decoder.cfg
    own = json.loads(decoder.config.to_json_string()) if hasattr(decoder.config, "to_json_string") else {}
    document = {**_fields(cfg), **own, "model_type": cfg.model_type}
    document.pop("quantization_config", None)
    if cfg.is_hybrid:
        document["model_type"] = HYBRID + cfg.model_type
        document.update(layout=write_layout(cfg.layout), mamba=write_mamba(cfg.mamba))
    else:
        for name in ("layout", "mamba"):
            document.pop(name, None)
    read = DecoderConfig.from_dict(document)
    said = set(cfg.__dataclass_fields__) - (set() if LayerKind.MAMBA in cfg.layout else {"mamba"})
    for name in sorted(said):
        if getattr(read, name) != getattr(cfg, name):
            raise ValueError(
                f"{name}={getattr(cfg, name)!r} cannot be said in the config.json of a {cfg.model_type} "
                f"model, which would read as {getattr(read, name)!r}."
            )
    return document


def _fields(cfg: DecoderConfig) -> dict[str, Any]:
    """The fields of a configuration that has no form of transformers; what they cannot say is found later."""
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
        "mlp_bias", "eos_token_id",
    )  # fmt: skip
    rope: Rope = cfg.ropes[0]
    scaling = None
    if isinstance(rope.scaling, LinearScaling):
        scaling = {"rope_type": "linear", "factor": rope.scaling.factor}
    return {
        **{name: getattr(cfg, name) for name in names},
        "hidden_act": cfg.activation.value,
        "attention_bias": cfg.output_bias,
        "sliding_window": cfg.windows[0],
        "rope_theta": rope.base,
        "rope_scaling": scaling,
    }


def _require_plain(decoder: Decoder) -> None:
    wanted = expected_shapes(decoder.cfg)
    found = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    if strange := sorted(wanted.items() ^ found.items()):
        raise TypeError(
            f"{strange[0][0]!r} is not as a plain {decoder.cfg.model_type} decoder has it: modules were "
            "rewritten; save what a recipe made with compression.save."
        )
