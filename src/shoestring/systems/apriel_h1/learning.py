"""What a conversion costs in quality, and what its order, stages, start and loss are worth.

Stages need not pay here. Of 5 of 6 layers only the one that stays is to be chosen, and leaving layers out
already names the best (seeds 2 and 3: keeping another costs 0.04 to 0.17 nats after 28 steps), so probes have
nothing to mend; and a mixer that comes in a later stage has fewer steps. Stages of equal length, each with a
rate that falls to 0, ended 0.015 to 0.042 nats behind at once; two short stages at the full rate and a long
last one end 0.001 to 0.010 behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.compression.hybrid_conversion import ConversionPlan, convert_in_stages, stage_number
from shoestring.compression.layer_importance import (
    leave_one_out,
    negative_loss,
    random_order,
    removal_controls,
)
from shoestring.compression.mamba_in_llama import Initial, at_random, convert, from_attention, with_mamba
from shoestring.data.tokens import Ids, TextBatches
from shoestring.layers.mamba.grouped_mamba import MambaShape
from shoestring.layers.rotary import Rope
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.systems.apriel_h1.claims import DIRECTION, HYBRID, ORDER, ORDER_RANDOM, STAGED, WARM_START
from shoestring.training.logit_distillation import distil_logits
from shoestring.training.plan import TrainingPlan
from shoestring.training.reverse_kl import Divergence, forward_kl, reverse_kl
from shoestring.training.trainer import Trainer
from shoestring.yardstick.comparison import Row


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """The teacher's shape, and how long it and its students learn.

    converted: layers with mixers in all arms but the staged ones, which begin there and end at `most`. steps:
    of distillation of each arm; stage_steps: of each stage, and all of them of the arm that converts as many
    layers at once. Most of them are the last stage's: what comes late learns only from then on. Before that
    the rate does not fall, as nobody uses those students. probe_steps: of a probe. rate, warmup_steps: of all
    arms alike, the best of those tried for the arm at once.
    """

    layers: int = 6
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    length: int = 128
    batch_size: int = 16
    teacher_steps: int = 260
    teacher_rate: float = 3e-3
    converted: int = 3
    most: int = 5
    steps: int = 28
    stage_steps: tuple[int, ...] = (14, 14, 56)
    probe_steps: int = 3
    rate: float = 4e-3
    warmup_steps: int = 10
    windows: int = 48
    ranking_windows: int = 16
    shape: MambaShape = MambaShape()  # noqa: RUF009  (frozen)


@dataclass(frozen=True)
class Text:
    """Ids to learn from, windows to rank layers by (of the same), and windows that judge."""

    train: Ids
    ranking: Tensor
    held_out: Tensor
    vocabulary: int

    @classmethod
    def cut(
        cls, train: Int[Tensor, " n"], held_out: Int[Tensor, " m"], vocabulary: int, lesson: Lesson
    ) -> "Text":
        """Windows of the lesson's length, spread over the held-out ids."""
        judged = held_out.unfold(0, lesson.length, max(1, len(held_out) // (lesson.windows + 1)))
        ranking = train[-lesson.ranking_windows * lesson.length :].unfold(0, lesson.length, lesson.length)
        rest = train[: -lesson.ranking_windows * lesson.length]
        return cls(rest, ranking, judged[: lesson.windows].contiguous(), vocabulary)


def learning_rows(text: Text, lesson: Lesson, seed: int) -> tuple[list[Row], list[str]]:
    """All arms, each distilled from the same teacher over the same batches; rows and notes."""
    teacher = train_teacher(text, lesson, seed)
    importance = leave_one_out(teacher, negative_loss(text.ranking))
    controls = removal_controls(teacher, importance, negative_loss(text.ranking), lesson.converted, seed=seed)
    order = importance.order
    orders = {"random": random_order(order, seed), "worst": order[::-1]}
    arm = _Arm(text, lesson, teacher, seed)
    student, curve = arm(order)
    loss, staged = held_out_loss(student, text), held_out_loss(_in_stages(arm), text)
    losses = {name: held_out_loss(arm(orders[name])[0], text) for name in orders}
    cold, cold_curve = arm(order, initial=at_random)
    forward, _ = arm(order, divergence=forward_kl)
    once, _ = arm(order, converted=lesson.most, steps=sum(lesson.stage_steps))
    rows = [
        HYBRID.row(baseline=held_out_loss(teacher, text), method=loss, against="the teacher"),
        ORDER.row(baseline=losses["worst"], method=loss, against="the worst order"),
        ORDER_RANDOM.row(baseline=losses["random"], method=loss, against="a random order"),
        STAGED.row(baseline=held_out_loss(once, text), method=staged, against="all at once"),
        WARM_START.row(baseline=held_out_loss(cold, text), method=loss, against="random mixers"),
        DIRECTION.row(baseline=held_out_loss(forward, text), method=loss, against="forward divergence"),
    ]
    ranked = ", ".join(f"{layer} ({importance.drops[layer]:.3f})" for layer in order)
    notes = [
        f"teacher: {lesson.layers} layers of {lesson.hidden}, {lesson.teacher_steps} steps; students: "
        f"{lesson.steps} steps an arm, {sum(lesson.stage_steps)} at once and {lesson.stage_steps} in stages "
        f"beside probes of {lesson.probe_steps}, {lesson.batch_size} x {lesson.length} tokens",
        f"layers by what leaving one out costs (nats): {ranked}",
        f"{lesson.converted} layers without attention, untrained: score {controls.by_importance:.3f} by "
        f"importance, {controls.at_random:.3f} at random, {controls.inverted:.3f} inverted",
        equal_loss_note(curve, cold_curve),
    ]
    return rows, notes


def train_teacher(text: Text, lesson: Lesson, seed: int) -> Decoder:
    """A small Llama trained on the text from `seed`."""
    cfg = DecoderConfig(
        vocab_size=text.vocabulary, hidden_size=lesson.hidden, intermediate_size=3 * lesson.hidden,
        num_hidden_layers=lesson.layers, num_attention_heads=lesson.heads,
        num_key_value_heads=lesson.kv_heads, head_dim=lesson.hidden // lesson.heads,
        windows=(None,) * lesson.layers, ropes=(Rope(),) * lesson.layers, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = Decoder(cfg)
    generator = torch.Generator().manual_seed(seed)
    for parameter in teacher.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    steps = lesson.teacher_steps
    plan = TrainingPlan(
        steps, lesson.teacher_rate, weight_decay=0.1, betas=(0.9, 0.95), warmup_steps=steps // 10, seed=seed
    )
    Trainer(teacher, _next_token, plan).run(TextBatches(text.train, lesson.length, lesson.batch_size, seed))
    return teacher.requires_grad_(False).eval()


def held_out_loss(model: Decoder, text: Text) -> float:
    """Nats a character on the windows that judge."""
    return -negative_loss(text.held_out)(model)


def equal_loss_note(warm: Sequence[float], cold: Sequence[float]) -> str:
    """How many steps the warm start takes to the loss at which the cold one ends, means of five steps."""
    means = [sum(warm[i : i + 5]) / 5 for i in range(len(warm) - 4)]
    goal = sum(cold[-5:]) / min(5, len(cold))
    reached = next((i + 5 for i, value in enumerate(means) if value <= goal), None)
    if reached is None:
        return f"from attention's weights the divergence does not reach {goal:.3f}, where random mixers end"
    return (
        f"divergence {goal:.3f}, where random mixers end after {len(cold)} steps, is reached after {reached} "
        "from attention's weights"
    )


class _Arm:
    """A student with mixers in the first `converted` layers of an order, distilled; and its losses."""

    def __init__(self, text: Text, lesson: Lesson, teacher: Decoder, seed: int) -> None:
        self.text, self.lesson, self.teacher, self.seed = text, lesson, teacher, seed

    def __call__(
        self,
        order: Sequence[int],
        *,
        converted: int | None = None,
        steps: int | None = None,
        initial: Initial = from_attention,
        divergence: Divergence = reverse_kl,
    ) -> tuple[Decoder, tuple[float, ...]]:
        count = self.lesson.converted if converted is None else converted
        layout = with_mamba(self.teacher.cfg.layout, order[:count])
        student = convert(self.teacher, layout, self.lesson.shape, initial=initial, seed=self.seed)
        losses = self.distil(student, self.lesson.steps if steps is None else steps, divergence)
        return student, losses

    def distil(
        self,
        student: Decoder,
        steps: int,
        divergence: Divergence = reverse_kl,
        *,
        first: int = 0,
        schedule: Literal["cosine", "constant"] = "cosine",
    ) -> tuple[float, ...]:
        """The loss of every step. first: how many batches were read before, which do not come again."""
        lesson = self.lesson
        batches = TextBatches(self.text.train, lesson.length, lesson.batch_size, self.seed + 1)
        plan = TrainingPlan(
            steps, lesson.rate, warmup_steps=min(lesson.warmup_steps, steps // 2), schedule=schedule,
            seed=self.seed,
        )  # fmt: skip
        return distil_logits(
            student, self.teacher, lambda step: batches(first + step), plan, divergence=divergence
        ).losses


def _in_stages(arm: _Arm) -> Decoder:
    """The student after all stages, from `converted` mixers to `most`."""
    lesson = arm.lesson
    counts = tuple(range(lesson.converted, lesson.most + 1))
    plan = ConversionPlan(
        counts=counts, steps=lesson.stage_steps, probe_steps=lesson.probe_steps, shape=lesson.shape,
        seed=arm.seed,
    )  # fmt: skip

    def distil(student: Decoder, teacher: Decoder, *, steps: int, name: str) -> float:
        before = stage_number(name) - 1
        goes_on = "probe" not in name and before + 1 < len(counts)
        return arm.distil(
            student,
            steps,
            first=sum(lesson.stage_steps[:before]),
            schedule="constant" if goes_on else "cosine",
        )[-1]

    return convert_in_stages(arm.teacher, plan, score=negative_loss(arm.text.ranking), distil=distil)[0]


def _next_token(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = batch
    return F.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())
