"""What MODEL on the command line may be, and the one way it is loaded."""

import os
from pathlib import Path
from typing import Any

from shoestring.models.built_in import BUILT_IN, built_in_file


def hide_loading_bars() -> None:
    """One spinner is enough. Call it before anything imports tqdm, which looks at the environment once."""
    os.environ.setdefault("TQDM_DISABLE", "1")


def load_model(name: str) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its tokenizer.

    name: a built-in alias, a .gguf file, a folder (fitted, or of the Hugging Face layout), a Hugging Face id.
    Raises: FileNotFoundError if there is no such model; BadModelFile, OSError if it cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from shoestring.compression.saved_folder import RECIPE, load

    disable_progress_bar()
    path = built_in_file(name) if name in BUILT_IN else Path(name)
    if (path / RECIPE).is_file():
        return load(path), AutoTokenizer.from_pretrained(path)
    source, options = str(path), {}
    if path.is_file():
        source, options = str(path.parent), {"gguf_file": path.name}
        _require_gguf(path)
    elif not path.is_dir():
        if path.is_absolute() or name.count("/") != 1 or name.startswith("."):
            raise FileNotFoundError(
                f"no model {name!r}: it is no file or folder here, no Hugging Face id (owner/name) and no "
                f"built-in ({', '.join(BUILT_IN)})"
            )
        source = name
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    model = AutoModelForCausalLM.from_pretrained(source, **options).eval()
    return _as_plain(model) if "gguf_file" in options else model, tokenizer


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


def disk_bytes(name: str) -> int:
    """Bytes of a model's weights as shipped. Raises: FileNotFoundError if they are not on this disk."""
    path = built_in_file(name) if name in BUILT_IN else Path(name)
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(name, allow_patterns=["*.safetensors"], local_files_only=True))
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _require_gguf(path: Path) -> None:
    from shoestring.errors import BadModelFile

    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise BadModelFile(f"{path} is no GGUF file; give a .gguf file, a folder or a Hugging Face id")
