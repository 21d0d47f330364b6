"""Drafts that come with this package, by the alias of their target."""

from pathlib import Path

from shoestring.errors import BadModelFile, MissingData
from shoestring.models.decoder import Decoder
from shoestring.models.glide_checkpoint import load_glide
from shoestring.models.glide_draft import GlideDraft

FOLDER = Path(__file__).parent / "drafts"


def built_in_draft(alias: str, target: Decoder) -> GlideDraft:
    """The draft for the built-in model `alias`, which is `target`.

    Raises: MissingData where there is none, naming those there are and how one is trained; else as
    `load_glide`.
    """
    place = FOLDER / alias
    if not (place / "draft.json").is_file():
        known = ", ".join(sorted(file.parent.name for file in FOLDER.glob("*/draft.json"))) or "none"
        raise MissingData(
            f"no draft for {alias!r} comes with this package ({known}); `shoestring train longspec-draft` "
            "trains that of smollm2-135m, and load_glide reads what it leaves under model/draft."
        )
    return load_glide(place, target)


def fitting_draft(target: Decoder) -> GlideDraft:
    """The draft in this package that was made for a model of this shape: good at it where it is that one.

    Raises: MissingData where none fits.
    """
    for file in sorted(FOLDER.glob("*/draft.json")):
        try:
            return load_glide(file.parent, target)
        except BadModelFile:
            continue
    names = ", ".join(sorted(file.parent.name for file in FOLDER.glob("*/draft.json"))) or "none"
    raise MissingData(
        f"no draft that comes with this package ({names}) fits a model of {target.cfg.hidden_size} channels "
        f"and {target.cfg.vocab_size} tokens; train one with shoestring.training.glide_training, or use "
        "lookup."
    )
