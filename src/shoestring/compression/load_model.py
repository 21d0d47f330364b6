"""The one way a model is loaded by its name, whatever the name stands for."""

from pathlib import Path
from typing import Any

from torch import nn

from shoestring.compression.saved_folder import RECIPE, load
from shoestring.errors import BadModelFile
from shoestring.models.built_in import BUILT_IN, built_in_file
from shoestring.models.checkpoint import is_known_gguf, open_checkpoint, read_config
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import FAMILIES, base_type
from shoestring.models.gguf_file import GGUFFile
from shoestring.models.load import check_tokenizer, find_model, first_line, load_decoder, load_tokenizer
from shoestring.models.quantised_checkpoint import is_readable
from shoestring.models.safetensors_file import open_safetensors


def load_model(name: str, *, packed: bool = False) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its tokenizer: a `Decoder` where the family is known, else the model
    of transformers.

    name: a built-in alias, a .gguf file, a folder (fitted, or of the Hugging Face layout), a Hugging Face id.
    packed: matrices of a GGUF file, or of a folder in the words of AWQ or GPTQ, keep their codes where they
    can, instead of becoming floats.
    Raises: FileNotFoundError if there is no such model; BadModelFile, OSError if it cannot be read.
    """
    path = find_model(name)
    model = _load(path, packed)
    tokenizer = _load_tokenizer(path)
    if (rows := _embedding_rows(model)) is not None:
        check_tokenizer(tokenizer, rows, path)
    return model, tokenizer


def load_transformers_model(name: str) -> tuple[Any, Any]:
    """As `load_model`, but always the model of transformers: what ours is compared with.

    Raises: as `load_model` does.
    """
    path = find_model(name)
    model = _by_transformers(path)
    return model if path.is_dir() else _as_plain(model), _load_tokenizer(path)


def disk_bytes(name: str) -> int:
    """Bytes of a model's weights as shipped. Raises: FileNotFoundError if they are not on this disk."""
    path = built_in_file(name) if name in BUILT_IN else Path(name)
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(name, allow_patterns=["*.safetensors"], local_files_only=True))
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _load(path: Path, packed: bool) -> nn.Module:
    _hide_loading_bars()
    if (path / RECIPE).is_file():
        model = load(path)
        known = getattr(model.config, "model_type", None) in FAMILIES
        return Decoder.from_transformers(model) if known else model
    if not path.is_dir():
        file = GGUFFile(path)
        return load_decoder(path, packed=packed) if is_known_gguf(file) else _as_plain(_by_transformers(path))
    config = read_config(path)
    # What another library has packed otherwise is unpacked by transformers.
    if base_type(config["model_type"]) in FAMILIES and (
        "quantization_config" not in config or is_readable(config)
    ):
        return load_decoder(open_checkpoint(path), packed=packed)
    open_safetensors(path)
    return _by_transformers(path)


def _by_transformers(path: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    _hide_loading_bars()
    source, options = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    try:
        return AutoModelForCausalLM.from_pretrained(source, **options).eval()
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BadModelFile(f"{path}: transformers cannot load it: {first_line(error)}") from error


def _embedding_rows(model: Any) -> int | None:
    if isinstance(model, Decoder):
        return model.cfg.vocab_size
    return getattr(model.get_input_embeddings(), "num_embeddings", None)


def _hide_loading_bars() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _load_tokenizer(path: Path) -> Any:
    if path.is_dir() or is_known_gguf(GGUFFile(path)):
        return load_tokenizer(path)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def _as_plain(model: Any) -> Any:
    """A model that was read from GGUF holds plain weights by now; transformers still takes it for quantised,
    and would neither cast nor save it."""
    for holder, name in ((model, "hf_quantizer"), (model, "quantization_method")):
        if hasattr(holder, name):
            delattr(holder, name)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model
