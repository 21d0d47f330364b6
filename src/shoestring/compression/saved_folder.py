"""Save a rewritten model as a folder in the Hugging Face layout, whole or not at all, and load it back."""

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shoestring.compression.module_formats import stored_tensors
from shoestring.compression.recipe import Recipe
from shoestring.errors import BadModelFile
from shoestring.files import check_place, recover_folder, replacing_folder

WEIGHTS = "model.safetensors"
RECIPE = "recipe.json"
PROOF = "proof.json"
MADE_BY = "shoestring"


def save(
    model: nn.Module,
    tokenizer: Any,
    folder: str | os.PathLike[str],
    *,
    recipe: Recipe | dict[str, Recipe | None] | None = None,
    proof: dict[str, Any] | None = None,
    pages: Mapping[str, str] | None = None,
) -> Path:
    """Write weights, config, tokenizer (or None), `recipe.json` and, if given, `proof.json` into `folder`.

    pages: further text files by name, such as a report.

    The folder appears whole or not at all; one that `save` made before is replaced in the same way. What a
    model computes anew when it is built (rotary frequencies) is not stored: where outputs must be identical,
    load a model in its type (`dtype=…`) rather than casting it afterwards.

    Raises: FileExistsError if the folder holds something else; TypeError if the model is not one of
    transformers, or a hybrid; OSError (a full disk) with everything left as it was.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    if not hasattr(getattr(model, "config", None), "save_pretrained"):
        kind = type(model).__name__
        raise TypeError(
            f"{kind} has no transformers config to save; convert it to a transformers model first."
        )
    if getattr(getattr(model, "cfg", None), "is_hybrid", False):
        raise TypeError("transformers cannot load a hybrid of attention and Mamba; use models.save_decoder.")
    try:
        with replacing_folder(folder) as temporary:
            _fill(temporary, model, tokenizer, recipe, proof, pages or {})
    except OSError as error:
        raise OSError(
            f"{folder} was not saved ({error.strerror or error}); what was there before is unchanged."
        ) from error
    return folder


def _fill(
    folder: Path,
    model: nn.Module,
    tokenizer: Any,
    recipe: Recipe | dict[str, Recipe | None] | None,
    proof: dict[str, Any] | None,
    pages: Mapping[str, str],
) -> None:
    _save_tensors(model, folder / WEIGHTS)
    _config(model).save_pretrained(folder)
    generation: Any = getattr(model, "generation_config", None)
    if generation is not None and getattr(model, "can_generate", lambda: True)():
        generation.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if proof is not None:
        _write_json(folder / PROOF, proof)
    for name, page in pages.items():
        (folder / name).write_text(page, encoding="utf-8")
    _write_json(folder / RECIPE, _recipe_document(recipe, folder))


def load(folder: str | os.PathLike[str]) -> nn.Module:
    """The model that `save` wrote, in evaluation mode, with outputs identical to the saved one's.

    Every file is checked against its recorded length and SHA-256 first, every tensor against the shape and
    type that its format asks for.

    Raises: FileNotFoundError if there is no such folder; BadModelFile if it was not made by `save`, or a file
    or tensor is missing, cut short, changed, or of another shape.
    """
    import transformers

    from shoestring.compression.transformers_quantizer import register

    folder = Path(folder)
    recover_folder(folder)
    document = check_folder(folder)
    register()
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, (config.architectures or [""])[0], None)
    if kind is None:
        raise BadModelFile(
            f"{folder}: transformers {transformers.__version__} has no {config.architectures}."
        )
    model, outcome = kind.from_pretrained(folder, dtype="auto", output_loading_info=True)
    if wrong := {what: sorted(map(str, names)) for what, names in outcome.items() if names}:
        raise BadModelFile(f"{folder / document['weights']}: the tensors do not fit the model: {wrong}.")
    return model.eval()


def check_folder(folder: Path) -> dict[str, Any]:
    """The document in `recipe.json`, once all files are as it says. Raises: as `load` does."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    document = _made_here(folder)
    if document is None:
        raise BadModelFile(f"{folder} was not saved by shoestring: it has no valid {RECIPE}.")
    for name, known in document["files"].items():
        path = folder / name
        if not path.is_file():
            raise BadModelFile(f"{path} is missing; copy the folder again.")
        size = path.stat().st_size
        if size != known["bytes"]:
            raise BadModelFile(f"{path} has {size} bytes instead of {known['bytes']}; copy the folder again.")
        if _sha256(path) != known["sha256"]:
            raise BadModelFile(f"{path} was changed after it was saved (its SHA-256 differs).")
    _check_tensors(folder)
    return document


def read_recipe(folder: str | os.PathLike[str]) -> Recipe | dict[str, Recipe | None] | None:
    """The recipe that was given to `save`. Raises: as `load` does."""
    saved = check_folder(Path(folder))["recipe"]
    if saved is None:
        return None
    if "recipe" in saved:
        return Recipe.from_json(saved)
    return {name: None if own is None else Recipe.from_json(own) for name, own in saved["modules"].items()}


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Find out before long work whether `save` may write there.

    Raises: FileExistsError if the folder holds something else, or cannot be replaced as a whole; OSError if
    it cannot be written.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    for kind, found in {
        "the current folder": folder.exists() and folder.samefile(os.curdir),
        "a mount point": os.path.ismount(folder),
    }.items():
        if found:
            raise FileExistsError(
                f"{folder} is {kind}, which cannot be replaced as a whole; name a folder in it, "
                f"e.g. {folder / 'model'}."
            )
    check_place(folder)


def read_proof(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The proof that was given to `save`; None if there is no such folder, or none was given.

    Raises: BadModelFile if the folder is damaged, as `load` does.
    """
    folder = Path(folder)
    recover_folder(folder)
    if not folder.is_dir() or _made_here(folder) is None or not (folder / PROOF).exists():
        return None
    check_folder(folder)
    document: dict[str, Any] = json.loads((folder / PROOF).read_text(encoding="utf-8"))
    return document


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict with each shared tensor once, under the first of its names."""
    seen: set[tuple[int, int, tuple[int, ...], torch.dtype]] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        key = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tuple(tensor.shape),
            tensor.dtype,
        )
        if tensor.numel() == 0 or key not in seen:
            seen.add(key)
            tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def _save_tensors(model: nn.Module, path: Path) -> None:
    try:
        save_file(unique_tensors(model), path, metadata={"format": "pt"})
    except SafetensorError as error:
        # The library tells a full disk by a type of its own, with the number of the system in the text.
        raise OSError(f"the weights cannot be written: {error}") from error


def _config(model: nn.Module) -> Any:
    from shoestring.compression.transformers_quantizer import ShoestringConfig

    config: Any = copy.deepcopy(model.config)
    config.architectures = [getattr(model, "transformers_class", type(model).__name__)]
    config.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    config.quantization_config = ShoestringConfig.of(model)
    return config


def _recipe_document(recipe: Recipe | dict[str, Recipe | None] | None, folder: Path) -> dict[str, Any]:
    import transformers

    from shoestring._version import __version__

    saved: dict[str, Any] | None = None
    if isinstance(recipe, Recipe):
        saved = recipe.to_json()
    elif recipe is not None:
        saved = {"modules": {name: None if own is None else own.to_json() for name, own in recipe.items()}}
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    versions = {
        "shoestring": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"made_by": MADE_BY, "recipe": saved, "weights": WEIGHTS, "files": files, "versions": versions}


def _refuse_foreign(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and _made_here(folder) is None:
        raise FileExistsError(f"{folder} holds files that shoestring did not save; choose another folder.")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose another folder.")


def _made_here(folder: Path) -> dict[str, Any] | None:
    try:
        document = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(document, dict) and document.get("made_by") == MADE_BY
    return document if ours and isinstance(document.get("files"), dict) else None


def _check_tensors(folder: Path) -> None:
    """The stored shapes and types against those that the formats in config.json ask for."""
    weights = folder / WEIGHTS
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        held = {}
        with safe_open(weights, framework="pt") as file:
            for name in file.offset_keys():
                part = file.get_slice(name)
                held[name] = (tuple(part.get_shape()), part.get_dtype())
    except (OSError, ValueError, SafetensorError) as error:
        raise BadModelFile(f"{folder} cannot be read: {error}") from error
    formats = config.get("quantization_config", {}).get("modules", {})
    for name, wanted in stored_tensors(formats).items():
        if held.get(name) != wanted:
            raise BadModelFile(f"{weights}: {name!r} is {held.get(name)} instead of {wanted}.")


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
