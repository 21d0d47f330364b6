"""A Glide draft in a folder: matrices as int8 with a scale for every row, the rest in float32."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float, Int8
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoestring.errors import BadModelFile
from shoestring.files import replacing_folder
from shoestring.models.decoder import Decoder
from shoestring.models.glide_draft import GlideDraft, GlideOptions

SCALE = ".scale"


def rows_to_int8(
    weight: Float[Tensor, "rows columns"],
) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, " rows"]]:
    """Codes −127 … 127 and the float32 scale of every row; a row of zeros has scale 0."""
    scale = weight.float().abs().amax(1) / 127
    codes = (weight.float() / torch.where(scale > 0, scale, 1.0)[:, None]).round()
    return codes.to(torch.int8), scale


def save_glide(draft: GlideDraft, folder: Path | str) -> None:
    """Write `draft.safetensors` and `draft.json`, all or nothing."""
    tensors: dict[str, Tensor] = {}
    for name, value in draft.state_dict().items():
        if value.dim() == 2:
            tensors[name], tensors[name + SCALE] = rows_to_int8(value)
        else:
            tensors[name] = value.float().contiguous()
    with replacing_folder(Path(folder)) as place:
        save_file(tensors, place / "draft.safetensors")
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
    draft, stored = GlideDraft(target.cfg, GlideOptions(**config)), load_file(place / "draft.safetensors")
    weights = {
        name: value.float() * stored[name + SCALE][:, None] if value.dtype == torch.int8 else value
        for name, value in stored.items()
        if not name.endswith(SCALE)
    }
    try:
        draft.load_state_dict(weights)
    except RuntimeError as error:
        raise BadModelFile(f"{place} does not fit this target: {error}") from error
    return draft.requires_grad_(False).eval()
