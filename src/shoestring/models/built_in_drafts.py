"""Drafts that come with this package, by the alias of their target."""

from pathlib import Path

from shoestring.errors import MissingData
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
