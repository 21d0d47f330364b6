"""SpAtten: fewer tokens, heads and values, and fewer bits of keys, in attention; and a machine for it.

Decoding is measured by the bits it reads and what is lost; an encoder by its time; the machine in cycles of a
model, which are not measured times.
"""

import torch

from shoestring.data.text import token_windows
from shoestring.errors import MissingData
from shoestring.models.built_in import built_in_file
from shoestring.models.load import load_decoder, load_tokenizer
from shoestring.systems.card import Card, Effort
from shoestring.systems.language_task import MODEL, corpus_halves, tiny_task
from shoestring.systems.spatten.claims import (
    CLAIMS,
    ENCODER_ACCURACY,
    ENCODER_INVERTED,
    ENCODER_RANDOM,
    ENCODER_TIME,
)
from shoestring.systems.spatten.cycles import cycle_rows
from shoestring.systems.spatten.decode import decode_rows, decode_variants
from shoestring.systems.spatten.encoder import encoder_rows, minilm_task, tiny_encoder
from shoestring.yardstick.comparison import Comparison, Row

card = Card(
    slug="spatten",
    title="SpAtten",
    paper="SpAtten: Efficient Sparse Attention Architecture with Cascade Token and Head Pruning (HPCA 2021)",
    year=2021,
    authors_code="mit-han-lab/spatten",
    saves=("memory", "compute", "time", "energy"),
    parts=(
        "shoestring.generation.spatten.SpAtten",
        "shoestring.generation.spatten.CascadeEncoder",
        "shoestring.generation.spatten.StartRecentImportant",
        "shoestring.generation.plane_cache.PlaneCache",
        "shoestring.generation.evicting_cache.Evicting",
        "shoestring.numbers.bit_planes.BitPlanes",
        "shoestring.kernels.attention_columns.attention_columns",
        "shoestring.kernels.top_k_engine",
        "shoestring.accelerators.attention_cycles",
        "shoestring.accelerators.energy",
    ),
    claims=CLAIMS,
)

WINDOWS, LENGTH, DECODED = 48, 1024, 32


def measure(effort: Effort, seed: int) -> Comparison:
    """Bits and perplexity of decoding, time and accuracy of an encoder, cycles of the machine."""
    smoke = effort is Effort.SMOKE
    if smoke:
        task = tiny_task(seed, held_out=(2, 48))
        model, windows, decoded, origin = task.model, task.held_out, 4, task.origin
    else:
        text, name = _text()
        path = built_in_file(MODEL)
        windows = token_windows(text, load_tokenizer(path), LENGTH, limit=WINDOWS, name=name)
        model, decoded = load_decoder(path, torch.bfloat16), DECODED
        origin = f"{MODEL} in bfloat16; {len(windows)} windows of {LENGTH} tokens of {name}"
    rows, notes = decode_rows(decode_variants(model, windows, decoded, seed))
    encoded, about = _encoder(smoke, seed)
    cycles, remarks = cycle_rows(5 if smoke else 200)
    return Comparison(
        system=card.slug,
        method="SpAtten",
        baseline="dense attention",
        work="tokens decoded one by one, windows encoded, one query in the cycle model",
        rows=(*rows, *encoded, *cycles),
        effort=effort,
        seed=seed,
        notes=(origin, *notes, *about, *remarks),
    )


def _text() -> tuple[str, str]:
    """A text as a whole, as nothing is fitted to it, and its name."""
    halves = corpus_halves("wikitext2-valid")
    return f"{halves.calibration}\n{halves.held_out}", halves.name


def _encoder(smoke: bool, seed: int) -> tuple[list[Row], list[str]]:
    try:
        task = tiny_encoder(seed) if smoke else minilm_task(*_text())
    except MissingData as error:
        claims = (ENCODER_TIME, ENCODER_ACCURACY, ENCODER_RANDOM, ENCODER_INVERTED)
        return [], [f"{claim.metric}: not measured, as {error}" for claim in claims]
    return encoder_rows(task, seed, rounds=3 if smoke else 9), [task.origin]
