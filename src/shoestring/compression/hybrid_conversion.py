"""A trained Transformer becomes a hybrid in stages, each distilled from the original teacher.

Stage 1 converts the layers that matter least alone (LOO); every further stage probes what is left in the
present student (MMR) and converts the easiest. Converted mixers keep what they learnt.

Source: Apriel-H1 (ServiceNow, 2025): 25 of 50 layers by LOO, then 27, 30, 34, 37, 40 by MMR, with
100 steps for a probe.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from shoestring.compression.layer_importance import Score, leave_one_out, probe_replacements
from shoestring.compression.mamba_in_llama import Initial, Unmapped, convert, from_attention, with_mamba
from shoestring.files import write_text
from shoestring.layers.mamba.grouped_mamba import MambaShape
from shoestring.models.decoder import Decoder
from shoestring.models.layer_layout import LayerKind, read_layout, write_layout
from shoestring.models.load import load_decoder
from shoestring.models.save_decoder import save_decoder

RECORD = "conversion.json"
PUBLISHED_COUNTS = (25, 27, 30, 34, 37, 40)


@runtime_checkable
class Distil(Protocol):
    """Trains `student` in place to predict as `teacher` does, and gives the loss at the end.

    name: of the run, for files; it says the stage (`stage_number`), and the layer of a probe.
    """

    def __call__(self, student: Decoder, teacher: Decoder, *, steps: int, name: str) -> float: ...


def stage_number(name: str) -> int:
    """The stage, from 1 on, that a run of this name is of, or a probe before it."""
    return int(name.split("-")[1])


@dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    """counts: mixers after each stage. steps: of distillation in each stage; probe_steps: of each probe.

    shape, seed, accept: as of `convert`. Raises: ValueError for counts that do not ascend from 1, or steps
    below 1.
    """

    counts: tuple[int, ...] = PUBLISHED_COUNTS
    steps: tuple[int, ...] | int
    probe_steps: int = 100
    shape: MambaShape = field(default_factory=MambaShape)
    seed: int = 0
    accept: frozenset[Unmapped] = frozenset()

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip((0, *self.counts), self.counts, strict=False))
        if not self.counts or not ascending:
            raise ValueError(f"counts={self.counts} must be numbers of mixers that ascend from 1")
        if isinstance(self.steps, tuple) and len(self.steps) != len(self.counts):
            raise ValueError(f"steps={self.steps} must be one number for each of counts={self.counts}")
        for name, values in (("steps", self.stage_steps), ("probe_steps", (self.probe_steps,))):
            if min(values) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def stage_steps(self) -> tuple[int, ...]:
        """Steps of every stage."""
        return self.steps if isinstance(self.steps, tuple) else (self.steps,) * len(self.counts)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON gives them back."""
        accept = sorted(reason.name for reason in self.accept)
        return json.loads(json.dumps({**asdict(self), "accept": accept, "steps": self.stage_steps}))


@dataclass(frozen=True)
class Stage:
    """layout: its letters. loss: after its distillation. scores: of the layers it chose from (LOO: drops,
    MMR: losses)."""

    layout: str
    loss: float
    scores: dict[int, float]


def convert_in_stages(
    teacher: Decoder,
    plan: ConversionPlan,
    *,
    score: Score,
    distil: Distil,
    initial: Initial = from_attention,
    folder: Path | str | None = None,
    on_stage: Callable[[Stage, Decoder], None] | None = None,
) -> tuple[Decoder, list[Stage]]:
    """The student of the last stage, and what each stage did.

    score: of a model, higher is better, for the first stage. distil: see `Distil`; given from outside, so
    that any training will do. initial: of new mixers. folder: where every stage's student is kept
    (`stage-1`, …) and from which a conversion that stopped goes on after its last whole stage. on_stage:
    called after each.

    Raises: ValueError for more mixers than the teacher has layers with attention, a folder that holds another
    plan or layout; TrainingDiverged for a probe whose loss is no number; else as `convert`, `distil`.
    """
    most = len(teacher.cfg.layers_of(LayerKind.ATTENTION))
    if plan.counts[-1] > most:
        raise ValueError(f"counts={plan.counts}: the teacher has {most} layers with attention, no more")
    folder = None if folder is None else Path(folder)
    stages, student = _resume(teacher, plan, folder)
    for number in range(len(stages), len(plan.counts)):
        scores = _scores(teacher, student, plan, number, score, distil, initial)
        present = student.cfg.layers_of(LayerKind.MAMBA)
        easiest = sorted(scores, key=lambda layer: (scores[layer], layer))
        layout = with_mamba(student.cfg.layout, easiest[: plan.counts[number] - len(present)])
        student = convert(student, layout, plan.shape, initial=initial, seed=plan.seed, accept=plan.accept)
        loss = distil(student, teacher, steps=plan.stage_steps[number], name=f"stage-{number + 1}")
        stages.append(Stage(write_layout(layout), loss, scores))
        if folder is not None:
            save_decoder(student, folder / f"stage-{number + 1}")
            _write(folder, teacher, plan, stages)
        if on_stage is not None:
            on_stage(stages[-1], student)
    return student, stages


def _scores(
    teacher: Decoder,
    student: Decoder,
    plan: ConversionPlan,
    number: int,
    score: Score,
    distil: Distil,
    initial: Initial,
) -> dict[int, float]:
    """Low: to be replaced first."""
    if number == 0:
        return leave_one_out(student, score).drops

    def replace(one: Decoder, layer: int) -> Decoder:
        layout = with_mamba(one.cfg.layout, [layer])
        return convert(one, layout, plan.shape, initial=initial, seed=plan.seed, accept=plan.accept)

    def probe(one: Decoder) -> float:
        (layer,) = set(one.cfg.layers_of(LayerKind.MAMBA)) - set(student.cfg.layers_of(LayerKind.MAMBA))
        name = f"stage-{number + 1}-probe-{layer}"
        return distil(one, teacher, steps=plan.probe_steps, name=name)

    return probe_replacements(
        student, student.cfg.layers_of(LayerKind.ATTENTION), replace=replace, distil=probe
    )


def _resume(teacher: Decoder, plan: ConversionPlan, folder: Path | None) -> tuple[list[Stage], Decoder]:
    if folder is None or not (folder / RECORD).is_file():
        return [], teacher
    document = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if document["plan"] != plan.as_json() or document["teacher"] != _teacher(teacher):
        raise ValueError(f"{folder} holds a conversion by another plan or of another teacher; use a new one")
    stages = [
        Stage(one["layout"], one["loss"], {int(k): v for k, v in one["scores"].items()})
        for one in document["stages"]
    ]
    student = load_decoder(folder / f"stage-{len(stages)}")
    if student.cfg.layout != read_layout(stages[-1].layout, len(student.cfg.layout)):
        raise ValueError(
            f"{folder}: stage {len(stages)} has the layout {write_layout(student.cfg.layout)}, its record "
            f"says {stages[-1].layout}; remove the folder and start again"
        )
    return stages, student


def _write(folder: Path, teacher: Decoder, plan: ConversionPlan, stages: list[Stage]) -> None:
    document = {"plan": plan.as_json(), "teacher": _teacher(teacher), "stages": [asdict(s) for s in stages]}
    write_text(folder / RECORD, json.dumps(document, indent=2) + "\n")


def _teacher(teacher: Decoder) -> str:
    """What tells this teacher from others: its shape, and a number of its weights."""
    total = sum(float(parameter.double().sum()) for parameter in teacher.parameters())
    return f"{len(teacher.cfg.layout)} layers of {teacher.cfg.hidden_size}, weights that sum to {total!r}"
