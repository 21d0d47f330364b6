"""A Glide draft in a folder: matrices as int8 with a scale for every row, the rest in float32."""

import json
from dataclasses import asdict
from pathlib import Path

from shoestring.errors import BadModelFile
from shoestring.files import replacing_folder
from shoestring.models.decoder import Decoder
from shoestring.models.glide_draft import GlideDraft, GlideOptions
from shoestring.models.int8_rows import load_int8, save_int8


def save_glide(draft: GlideDraft, folder: Path | str) -> None:
    """Write `draft.safetensors` and `draft.json`, all or nothing."""
    with replacing_folder(Path(folder)) as place:
        save_int8(draft.state_dict(), place / "draft.safetensors")
        config = {"architecture": "GlideDraft", **asdict(draft.options)}
        (place / "draft.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_glide(folder: Path | str, target: Decoder) -> GlideDraft:
    """The draft of a folder, for this target, frozen.

    Raises: FileNotFoundError; BadModelFile for a folder that holds another kind of model, or tensors that do
    not fit the target.
    """
    place = Path(folder)
    config = json.loads((place / "draft.json").read_text(encoding="utf-8"))
    if config.pop("architecture", None) != "GlideDraft":
        raise BadModelFile(f"{place / 'draft.json'} describes no GlideDraft.")
    draft = GlideDraft(target.cfg, GlideOptions(**config))
    try:
        draft.load_state_dict(load_int8(place / "draft.safetensors"))
    except RuntimeError as error:
        raise BadModelFile(f"{place} does not fit this target: {error}") from error
    return draft.requires_grad_(False).eval()
