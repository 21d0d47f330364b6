"""The full run: SmolLM2-135M with a quarter, half and three quarters of its attention replaced, in stages.

Distilled on text that the model writes itself. It stops and goes on: every stage and every run of steps is
kept in a folder.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoestring.compression.hybrid_conversion import ConversionPlan, Stage, convert_in_stages, stage_number
from shoestring.compression.layer_importance import negative_loss
from shoestring.data.seeded import torch_generator
from shoestring.files import replacing_file
from shoestring.layers.mamba.grouped_mamba import MambaShape
from shoestring.models.decoder import Decoder
from shoestring.models.load import load_decoder
from shoestring.systems.apriel_h1.claims import FAMILY, RECALL
from shoestring.systems.language_task import LanguageTask
from shoestring.training.logit_distillation import distil_logits
from shoestring.training.model_text import model_text
from shoestring.training.plan import TrainingPlan
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.language_quality import perplexity

TRACES = "traces.safetensors"


@dataclass(frozen=True, kw_only=True)
class FamilyRun:
    """steps: of a stage; probe_steps: of a probe. traces: sequences that the teacher writes, of `length`."""

    steps: int = 300
    probe_steps: int = 8
    traces: int = 512
    length: int = 256
    batch_size: int = 4
    rate: float = 3e-4
    recall_tokens: int = 48
    shape: MambaShape = MambaShape()  # noqa: RUF009  (frozen)

    def counts(self, layers: int) -> dict[int, int]:
        """Mixers by share in percent."""
        return {share: round(layers * share / 100) for share in FAMILY}


def family_rows(
    task: LanguageTask, run: FamilyRun, folder: Path, seed: int, say: Callable[[str], None] | None = None
) -> tuple[list[Row], list[str]]:
    """Perplexity and recall of every share beside the teacher. say: told the cost first, and each stage."""
    say = _say if say is None else say
    teacher, counts = task.model, run.counts(task.model.cfg.num_hidden_layers)
    plan = ConversionPlan(
        counts=tuple(counts.values()),
        steps=run.steps,
        probe_steps=run.probe_steps,
        shape=run.shape,
        seed=seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    texts = traces(teacher, run, folder, seed)

    def batches(step: int) -> Tensor:
        return texts[torch.randint(len(texts), (run.batch_size,), generator=torch_generator(seed, step))]

    def distil(student: Decoder, teacher: Decoder, *, steps: int, name: str) -> float:
        schedule = TrainingPlan(steps, run.rate, warmup_steps=steps // 10, seed=seed)
        before = (stage_number(name) - 1) * run.steps
        return distil_logits(
            student,
            teacher,
            lambda step: batches(before + step),
            schedule,
            folder=folder / "runs" / name,
            checkpoint_every=100,
        ).losses[-1]

    say(_cost(teacher, batches(0), plan))
    found: dict[int, dict[str, float]] = {}
    by_count = {count: share for share, count in counts.items()}

    def judged(stage: Stage, student: Decoder) -> None:
        say(f"{stage.layout}: divergence {stage.loss:.3f}")

    convert_in_stages(
        teacher, plan, score=negative_loss(task.calibration), distil=distil, folder=folder, on_stage=judged
    )
    for number, count in enumerate(plan.counts):
        student = load_decoder(folder / f"stage-{number + 1}")
        found[by_count[count]] = _quality(student, task, run, seed)
    whole = _quality(teacher, task, run, seed)
    rows = [
        claims[share].row(baseline=whole[key], method=own[key], against="the teacher")
        for claims, key in ((FAMILY, "perplexity"), (RECALL, "recall"))
        for share, own in found.items()
    ]
    return rows, [f"family: {run.steps} steps a stage of {run.batch_size} x {run.length} self-written tokens"]


def traces(teacher: Decoder, run: FamilyRun, folder: Path, seed: int) -> Int[Tensor, "traces length"]:
    """Text that the teacher writes, kept in the folder: begun anew from the likeliest first tokens."""
    place = folder / TRACES
    if not place.is_file():
        written = model_text(teacher, run.traces, run.length, generator=torch.Generator().manual_seed(seed))
        with replacing_file(place) as temporary:
            save_file({"ids": written}, temporary)
    return load_file(place)["ids"]


def recall(model: Decoder, tokens: int, seed: int, sequences: int = 8) -> float:
    """Percent of random tokens that are predicted right where they come a second time."""
    ids = torch.randint(
        model.cfg.vocab_size, (sequences, tokens), generator=torch.Generator().manual_seed(seed)
    )
    with torch.inference_mode():
        logits = model(torch.cat([ids, ids], 1)).logits
    assert logits is not None
    guesses = logits[:, tokens:-1].argmax(-1)
    return 100 * float((guesses == ids[:, 1:]).double().mean())


def _quality(model: Decoder, task: LanguageTask, run: FamilyRun, seed: int) -> dict[str, float]:
    return {
        "perplexity": perplexity(model, task.held_out).ppl,
        "recall": recall(model, run.recall_tokens, seed),
    }


def _cost(teacher: Decoder, batch: Tensor, plan: ConversionPlan) -> str:
    """Steps, and hours by the time that the teacher takes to read a batch: a step is about five of those."""
    left = [len(teacher.cfg.layout) - count for count in plan.counts[:-1]]
    steps = sum(plan.stage_steps) + plan.probe_steps * sum(left)
    with torch.inference_mode():
        start = time.perf_counter()
        teacher(batch)
    hours = 5 * steps * (time.perf_counter() - start) / 3600
    return f"apriel-h1: {steps} steps of distillation, about {hours:.1f} hours here; it can be resumed"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
