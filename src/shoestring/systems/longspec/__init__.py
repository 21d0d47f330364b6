"""LongSpec: a draft of one layer, in constant memory, over the target's own last keys and values.

The draft is trained on text that the target writes, to say what the target says (`shoestring train
longspec-draft`), and comes with this package. Every drafted token is verified: the text is that of plain
decoding. On two cores verifying a token more is not free, so that chains of three are drafted, not trees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.data.text import token_windows
from shoestring.generation.speculation.draft import Speculation
from shoestring.generation.speculation.draft_length import FixedLength
from shoestring.generation.speculation.glide import Glide, GlideRun
from shoestring.generation.speculation.prompt_lookup import PromptLookup
from shoestring.generation.speculation.target import Target
from shoestring.kernels.grouped_linear import Activations
from shoestring.models.built_in import built_in_file
from shoestring.models.built_in_drafts import built_in_draft
from shoestring.models.decoder import Decoder
from shoestring.models.glide_draft import GlideDraft, GlideOptions
from shoestring.models.load import load_decoder, load_tokenizer
from shoestring.notices import record_fallbacks
from shoestring.systems.card import Card, Claim, Effort
from shoestring.systems.language_task import MODEL, corpus_halves, tiny_task
from shoestring.systems.longspec.claims import (
    ACCEPTED,
    CLAIMS,
    GPU_SPEED,
    LONG,
    LONGER_NO_WORSE,
    LOOKUP,
    PACKED,
    REPETITIVE,
    SHORT,
    SPEEDS,
)
from shoestring.systems.longspec.decoding import Prompt, Race, race
from shoestring.systems.longspec.operator import bytes_row, operator_rows
from shoestring.systems.longspec.training import repetitive_row, trained_for
from shoestring.training.glide_text import Writing
from shoestring.yardstick.comparison import Comparison, Row

card = Card(
    slug="longspec",
    title="LongSpec",
    paper="LongSpec: Long-Context Lossless Speculative Decoding with Efficient Drafting and Verification "
    "(arXiv 2025)",
    year=2025,
    authors_code="sail-sg/LongSpec",
    saves=("time", "memory"),
    parts=(
        "shoestring.generation.speculation.Glide",
        "shoestring.generation.speculation.DraftTree",
        "shoestring.generation.speculation.tree_attend",
        "shoestring.generation.ring_cache.RingCache",
        "shoestring.models.glide_draft.GlideDraft",
        "shoestring.models.drafting_form.drafting_form",
        "shoestring.models.built_in_drafts.built_in_draft",
        "shoestring.training.glide_text.GlideText",
        "shoestring.training.glide_training.GlideLoss",
    ),
    claims=CLAIMS,
)

CORPUS = "wikitext2-valid"
PAPERS_TREE = (4, 16, 16, 16, 16)


@dataclass(frozen=True)
class Work:
    """What is decoded. contexts: the lengths that stand for 1024 and 4096. prompts: as long as the longer.

    unseen: text of the half that no draft was trained on; seen: of the other. packed: the same model with
    packed weights, where there is one."""

    model: Decoder
    packed: Decoder | None
    draft: GlideDraft
    prompts: Sequence[Int[Tensor, " tokens"]]
    unseen: Int[Tensor, " unseen"]
    seen: Int[Tensor, " seen"]
    origin: str
    contexts: tuple[int, int] = (SHORT, LONG)
    new_tokens: int = 64
    rounds: int = 2
    operator_rounds: int = 15
    minute: float | None = None
    """Seconds that the short training takes; None: it is left out."""
    writing: Writing = field(default_factory=lambda: Writing(64, 192, 192))


def measure(effort: Effort, seed: int) -> Comparison:
    """Text decoded with and without the draft, its cache, attention of a tree, and a short training."""
    with record_fallbacks() as fallbacks:
        work = _tiny(seed) if effort is Effort.SMOKE else _smollm2(effort)
        rows, notes = _decoding_rows(work)
        rows.append(_draft_bytes(work))
        rows += operator_rows(work.model.cfg, work.contexts[1], work.operator_rounds, seed)
        if work.minute is None:
            notes.append(f"{REPETITIVE.metric}: not measured: at full effort only")
        else:
            rows.append(_after_a_minute(work, work.minute, seed))
        if torch.cuda.is_available():
            rows.append(_gpu_row(work))
    return Comparison(
        system=card.slug,
        method="LongSpec, chains of 3",
        baseline="plain decoding",
        work=f"{work.new_tokens} tokens behind each of {len(work.prompts)} prompts, greedy",
        rows=tuple(rows),
        effort=effort,
        seed=seed,
        notes=(work.origin, *notes, *fallbacks),
    )


def _decoding_rows(work: Work) -> tuple[list[Row], list[str]]:
    """Rows of text, and what else was seen."""
    ways: dict[str, Speculation | None] = {
        "plain": None,
        "glide": Glide(work.draft, length=FixedLength()),
        "lookup": PromptLookup(),
    }
    rows, notes, gains = [], [], {}
    for claimed, context in zip((SHORT, LONG), work.contexts, strict=True):
        # The end of the same text: what is decoded goes on from the same words.
        prompts = [ids[-context:] for ids in work.prompts]
        found = race(work.model, prompts, ways, work.new_tokens, work.rounds)
        rows.append(ACCEPTED[claimed].row(baseline=1, method=found.tokens_per_pass("glide")))
        speeds = found.speeds("glide", "plain")
        rows.append(_race_row(SPEEDS[claimed], found, "glide", "plain"))
        gains[claimed] = sorted(speeds)[len(speeds) // 2]
        same, outputs = found.same_text("glide", "plain")
        notes.append(
            f"{context} tokens of context: {same} of {outputs} texts are those of plain decoding to the last "
            f"token; prompt lookup: {found.tokens_per_pass('lookup'):.2f} tokens per pass"
        )
    rows.append(LONGER_NO_WORSE.row(baseline=gains[SHORT], method=gains[LONG]))
    rows.append(_race_row(LOOKUP, found, "glide", "lookup"))
    if work.packed is None:
        notes.append(f"{PACKED.metric}: not measured: there is no file with packed weights")
    else:
        measured: dict[str, Speculation | None] = {"plain": None, "glide": Glide(work.draft)}
        prompts = [ids[-work.contexts[0] :] for ids in work.prompts]
        packed = race(work.packed, prompts, measured, work.new_tokens, work.rounds, Activations.INT8)
        rows.append(_race_row(PACKED, packed, "glide", "plain"))
    return rows, notes


def _race_row(claim: Claim, found: Race, way: str, against: str) -> Row:
    """Tokens a second, and the median of the paired ratios."""
    speeds = sorted(found.speeds(way, against))
    return claim.row(
        baseline=found.tokens_per_second(against),
        method=found.tokens_per_second(way),
        ratio=speeds[len(speeds) // 2],
    )


@torch.inference_mode()
def _draft_bytes(work: Work) -> Row:
    prompt = Prompt(work.model, work.prompts[0], work.new_tokens)
    run = GlideRun(Glide(work.draft))
    run.begin(Target(prompt.runner), [*prompt.ids, int(prompt.logits.argmax())])
    run.propose(run.unread[-1], 3)
    return bytes_row(run, work.contexts[1])


def _after_a_minute(work: Work, seconds: float, seed: int) -> Row:
    smoke = work.packed is None
    target = work.model if smoke else load_decoder(built_in_file(MODEL), torch.bfloat16)
    window = work.draft.options.window
    draft = trained_for(seconds, target, work.seen, work.writing, window, seed)
    return repetitive_row(
        work.model, draft, work.unseen, work.contexts[0] // 4, len(work.prompts), work.new_tokens
    )


def _gpu_row(work: Work) -> Row:
    """Trees of the paper's shape, behind as many tokens as the target has positions for."""
    model, draft = work.model.cuda(), work.draft.cuda()
    longest = (model.cfg.max_position_embeddings or 2 * len(work.prompts[0])) - work.new_tokens - 1
    prompts = [work.unseen[:longest]]
    ways = {"plain": None, "tree": Glide(draft, shape=PAPERS_TREE)}
    return _race_row(GPU_SPEED, race(model, prompts, ways, work.new_tokens, work.rounds), "tree", "plain")


def _smollm2(effort: Effort) -> Work:
    """SmolLM2-135M on the half of WikiText-2 that the draft was not trained on."""
    full = effort is Effort.FULL
    file, halves = built_in_file(MODEL), corpus_halves(CORPUS)
    tokenizer = load_tokenizer(file)
    model = load_decoder(file)
    count = 8 if full else 3
    prompts = token_windows(halves.held_out, tokenizer, LONG, limit=count, name=halves.name)
    return Work(
        model,
        load_decoder(file, packed=True),
        built_in_draft(MODEL, model),
        list(prompts),
        torch.tensor(tokenizer.encode(halves.held_out)),
        torch.tensor(tokenizer.encode(halves.calibration)),
        f"{MODEL}; prompts of the held-out half of {halves.name}",
        new_tokens=128 if full else 64,
        rounds=4 if full else 2,
        minute=60.0 if full else None,
    )


def _tiny(seed: int) -> Work:
    """A random decoder on random tokens, and the copy of its last layer."""
    task = tiny_task(seed, (4, 96), (2, 96))
    draft = GlideDraft(task.model.cfg, GlideOptions(16)).copy_last_layer(task.model).requires_grad_(False)
    return Work(
        task.model, None, draft, list(task.held_out), task.held_out.flatten(), task.calibration.flatten(),
        task.origin, contexts=(48, 96), new_tokens=8, rounds=1, operator_rounds=3, minute=0.05,
        writing=Writing(8, 8, 8),
    )  # fmt: skip
