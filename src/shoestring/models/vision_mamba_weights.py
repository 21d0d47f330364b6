"""Weights of a Vision Mamba: saved, loaded at another resolution, taken from the authors' checkpoints.

Source of the names: the authors' published checkpoints (hustvl/Vim).
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from shoestring.files import replacing_folder
from shoestring.layers.patch_embedding import interpolate_positions
from shoestring.layers.patch_tokens import ClassToken, place
from shoestring.models.vision_mamba import VisionMamba
from shoestring.models.vision_mamba_config import Direction, Scan, VisionMambaConfig

Weights = Mapping[str, Tensor]

_RESIZABLE = ("image_size", "stride", "dropout", "drop_path", "original_init")
"""What may differ between a model and the weights that it takes."""
_ORIGINAL = {
    r"patch_embed\.proj\.": "tokens.embedding.projection.",
    r"layers\.(\d+)\.norm\.": r"blocks.\1.norm.",
    r"layers\.(\d+)\.mixer\.(in_proj|out_proj)\.": r"blocks.\1.mixer.\2.",
    r"layers\.(\d+)\.mixer\.conv1d(_b)?\.": r"blocks.\1.mixer.{\2}.conv_",
    r"layers\.(\d+)\.mixer\.(x_proj|dt_proj)(_b)?\.": r"blocks.\1.mixer.{\3}.\2.",
    r"layers\.(\d+)\.mixer\.A(_b)?_log$": r"blocks.\1.mixer.{\2}.A_log",
    r"layers\.(\d+)\.mixer\.D(_b)?$": r"blocks.\1.mixer.{\2}.D",
    r"norm_f\.": "norm.",
    r"head\.": "head.",
}
_ORIGINAL_TOKENS = {
    ClassToken.MIDDLE: ("cls_token",),
    ClassToken.HEAD: ("cls_token",),
    ClassToken.RANDOM: ("cls_token",),
    ClassToken.BOTH_ENDS: ("cls_token_head", "cls_token_tail"),
    ClassToken.NONE: (),
}


def save_vision_mamba(model: VisionMamba, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors`, whole or not at all."""
    with replacing_folder(Path(folder)) as temporary:
        save_file({n: p.contiguous() for n, p in model.state_dict().items()}, temporary / "model.safetensors")
        (temporary / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2), encoding="utf-8")


def load_vision_mamba(folder: str | os.PathLike[str], config: VisionMambaConfig | None = None) -> VisionMamba:
    """What `save_vision_mamba` wrote, by default as it was, else for a picture size or stride of `config`.

    Raises: FileNotFoundError; ValueError where `config` differs in more than that, e.g. in the class token.
    """
    stored = VisionMambaConfig.from_dict(json.loads(Path(folder, "config.json").read_text(encoding="utf-8")))
    return fill(VisionMamba(config or stored), load_file(Path(folder, "model.safetensors")), stored)


def resized(model: VisionMamba, *, image_size: tuple[int, int], stride: int | None = None) -> VisionMamba:
    """The model for another picture size or stride of its patches: its weights, its positions resized.

    A smaller stride is how the authors fine-tune on long sequences. Raises: as `PatchEmbedding`.
    """
    stride = model.config.stride if stride is None else stride
    config = dataclasses.replace(model.config, image_size=image_size, stride=stride)
    return fill(VisionMamba(config), model.state_dict(), model.config).train(model.training)


def fill(model: VisionMamba, weights: Weights, stored: VisionMambaConfig) -> VisionMamba:
    """Put weights of a model of `stored` into `model`, and return it.

    Raises: ValueError naming a choice in which the two differ.
    """
    for field in dataclasses.fields(stored):
        mine, theirs = getattr(model.config, field.name), getattr(stored, field.name)
        if mine != theirs and field.name not in _RESIZABLE:
            raise ValueError(
                f"the weights are of a model with {field.name}={theirs!r}, this one has {mine!r}; build it "
                "with theirs"
            )
    rows, columns = ((size - stored.patch_size) // stored.stride + 1 for size in stored.image_size)
    slots = stored.class_token.slots(rows * columns)
    found = interpolate_positions(weights["tokens.positions"], (rows, columns), model.tokens.grid, slots)
    tokens, patches = found[: len(slots)], found[len(slots) :]
    positions = place(tokens[None], patches[None], stored.class_token.slots(len(patches)))[0]
    model.load_state_dict({**weights, "tokens.positions": positions})
    return model


def from_original(weights: Weights, config: VisionMambaConfig) -> VisionMamba:
    """A model with the weights of one of the authors' checkpoints (the table called "model" in it).

    Where in the sequence a single class token stands is not in the weights: `config` must say it.

    Raises: ValueError for another layout of class tokens than `config` has, for a direction other than
    "both" or a scan other than "selective", or a weight that is missing or has no place.
    """
    if config.direction is not Direction.BOTH:
        raise ValueError(f"direction={config.direction.value!r}: the authors' checkpoints are of 'both'")
    if config.scan is not Scan.SELECTIVE:
        raise ValueError(f"scan={config.scan.value!r}: the authors' checkpoints are of 'selective'")
    names = _ORIGINAL_TOKENS[config.class_token]
    if names != tuple(sorted(name for name in weights if name.startswith("cls_token"))):
        theirs = ", ".join(sorted(n for n in weights if n.startswith("cls_token"))) or "no class token"
        raise ValueError(
            f"the weights have {theirs}, class_token={config.class_token.value!r} takes "
            f"{', '.join(names) or 'none'}: they are of another layout of class tokens"
        )
    model = VisionMamba(config)
    mine = {_own_name(name): _own_shape(name, part) for name, part in weights.items() if name not in names}
    dim = model.tokens.positions.shape[1]
    mine["tokens.class_tokens"] = model.tokens.class_tokens.detach().new_empty(0, dim)
    if names:
        mine["tokens.class_tokens"] = next(iter(weights.values())).new_empty(len(names), dim)
        for row, name in enumerate(names):
            mine["tokens.class_tokens"][row] = weights[name].reshape(dim)
    wanted = model.state_dict()
    if strange := sorted(mine.keys() ^ wanted.keys()):
        where = "missing from the weights" if strange[0] in wanted else "not part of the model"
        raise ValueError(f"{strange[0]} is {where}")
    model.load_state_dict(mine)
    return model


def _own_name(name: str) -> str:
    if name == "pos_embed":
        return "tokens.positions"
    for pattern, ours in _ORIGINAL.items():
        if match := re.match(pattern, name):
            start = match.expand(ours).replace("{_b}", "backwards").replace("{}", "forwards")
            return start + name[match.end() :]
    return name


def _own_shape(name: str, part: Tensor) -> Tensor:
    if name == "pos_embed":
        return part[0]
    return part[:, 0] if re.search(r"conv1d(_b)?\.weight$", name) else part
