"""A HAMburger, or a plain decoder, in a folder of int8 rows: 3 M parameters are 3 MB."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoestring.errors import BadModelFile
from shoestring.files import replacing_folder
from shoestring.models.checkpoint import CONFIG
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.hamburger import Hamburger
from shoestring.models.hamburger_options import HamburgerOptions
from shoestring.models.int8_rows import load_int8, save_int8
from shoestring.models.save_decoder import config_document

WEIGHTS = "model.int8.safetensors"
OPTIONS = "hamburger"
"""Where `config.json` keeps the options; a plain decoder has none."""


def save_small(model: Decoder | Hamburger, folder: Path | str, tokenizer: Any = None) -> None:
    """Write `config.json`, weights and tokenizer, all or nothing. A tied head is written once."""
    base = model.base if isinstance(model, Hamburger) else model
    tensors = dict(model.state_dict())
    if base.cfg.tie_word_embeddings:
        tensors.pop("base.lm_head.weight" if isinstance(model, Hamburger) else "lm_head.weight")
    document = config_document(base)
    if isinstance(model, Hamburger):
        document[OPTIONS] = {**asdict(model.options), "confidence": model.confidence}
    with replacing_folder(Path(folder)) as place:
        save_int8(tensors, place / WEIGHTS)
        (place / CONFIG).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(place)


def load_small_decoder(folder: Path | str) -> Decoder:
    """The plain decoder of a folder, frozen. Raises: FileNotFoundError; BadModelFile for a HAMburger, or
    tensors that do not fit."""
    place, document = Path(folder), _document(Path(folder))
    if OPTIONS in document:
        raise BadModelFile(f"{place} holds a HAMburger; load it with load_hamburger.")
    return Decoder.from_weights(DecoderConfig.from_dict(document), load_int8(place / WEIGHTS))


def load_hamburger(folder: Path | str) -> Hamburger:
    """The HAMburger of a folder, frozen.

    Raises: FileNotFoundError; BadModelFile for a plain decoder, or tensors that do not fit.
    """
    place, document = Path(folder), _document(Path(folder))
    if OPTIONS not in document:
        raise BadModelFile(
            f"{place} holds a plain {document.get('model_type')} model: missing micro decoder: train first "
            "(training.hamburger_training, or `shoestring train hamburger`)."
        )
    options = dict(document.pop(OPTIONS))
    confidence, features = options.pop("confidence"), tuple(options.pop("features"))
    base = Decoder(DecoderConfig.from_dict(document))
    model = Hamburger(base, HamburgerOptions(features, **options), confidence)
    tensors = load_int8(place / WEIGHTS)
    if base.cfg.tie_word_embeddings:
        tensors["base.lm_head.weight"] = tensors["base.model.embed_tokens.weight"]
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise BadModelFile(f"{place} does not hold what its {CONFIG} says: {error}") from error
    return model.requires_grad_(False).eval()


def _document(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))
