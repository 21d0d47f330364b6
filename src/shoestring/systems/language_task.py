"""What experiments on language models run on: a model, text to calibrate on and text that judges.

The model is SmolLM2-135M; the text is `$SHOESTRING_TEXT` or the default one, in two disjoint halves. Smoke
runs take a tiny random model and random tokens instead: loading the real one takes longer than they may.
"""

import os
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.data.corpora import PYDOC, load_corpus
from shoestring.data.text import TextHalves, cut_in_halves, default_halves, file_halves, token_windows
from shoestring.errors import MissingData
from shoestring.models.built_in import built_in_file
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.load import load_decoder, load_tokenizer
from shoestring.notices import notice_fallback

MODEL = "smollm2-135m"


@dataclass(frozen=True)
class LanguageTask:
    """origin: which model and text, in a phrase."""

    model: Decoder
    calibration: Int[Tensor, "windows tokens"]
    held_out: Int[Tensor, "windows2 tokens2"]
    origin: str


def language_task(
    calibration: tuple[int, int], held_out: tuple[int, int], dtype: torch.dtype = torch.float32
) -> LanguageTask:
    """SmolLM2-135M with windows of real text. calibration, held_out: how many windows of how many tokens.

    Raises: MissingData if the model is not installed; ValueError if the text is too short.
    """
    halves = text_halves()
    path = built_in_file(MODEL)
    tokenizer = load_tokenizer(path)
    parts = []
    for (count, length), text in zip(
        (calibration, held_out), (halves.calibration, halves.held_out), strict=True
    ):
        windows = token_windows(text, tokenizer, length, limit=count, name=halves.name)
        if len(windows) < count:
            raise ValueError(
                f"{halves.name} has {len(windows)} windows of {length} tokens in one half, but {count} are "
                "needed: give a longer text."
            )
        parts.append(windows)
    origin = f"{MODEL}; {halves.name}, one half to calibrate, the other to judge"
    return LanguageTask(load_decoder(path, dtype), parts[0], parts[1], origin)


def tiny_task(
    seed: int, calibration: tuple[int, int] = (4, 32), held_out: tuple[int, int] = (2, 32)
) -> LanguageTask:
    """A random model of two layers and random tokens, for smoke runs: its figures say nothing."""
    generator = torch.Generator().manual_seed(seed)
    fields = {
        "model_type": "llama", "vocab_size": 96, "hidden_size": 128, "intermediate_size": 192,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Decoder(DecoderConfig.from_dict(fields)).requires_grad_(False).eval()
    parts = [torch.randint(0, 96, shape, generator=generator) for shape in (calibration, held_out)]
    return LanguageTask(model, parts[0], parts[1], "a random model of two layers on random tokens")


def corpus_halves(corpus: str) -> TextHalves:
    """The halves of `$SHOESTRING_TEXT`, else of a corpus of `load_corpus`.

    Where the corpus is not on this machine and cannot be fetched, the default text stands in, which is said.
    Raises: as `load_corpus` and `file_halves` do.
    """
    if os.environ.get("SHOESTRING_TEXT"):
        return text_halves()
    try:
        return cut_in_halves(load_corpus(corpus), corpus)
    except MissingData as error:
        notice_fallback(corpus, f"the default text stands in for it: {error}")
        return default_halves()


def corpus_text(corpus: str) -> tuple[str, str]:
    """A corpus of `load_corpus` as a whole, and its name.

    Where it is not on this machine and cannot be fetched, the default text stands in, which is said.
    Raises: as `load_corpus`.
    """
    try:
        return load_corpus(corpus), corpus
    except MissingData as error:
        notice_fallback(corpus, f"the default text stands in for it: {error}")
        return load_corpus(PYDOC), PYDOC


def text_halves() -> TextHalves:
    """The halves of `$SHOESTRING_TEXT`, or of the default text. Raises: as `file_halves` does."""
    path = os.environ.get("SHOESTRING_TEXT")
    return file_halves(path) if path else default_halves()
