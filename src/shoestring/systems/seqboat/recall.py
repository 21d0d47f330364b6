"""The recall task that shows what SeqBoat can see and what it skips: four arms, all else the same."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.recall import ScatteredRecall
from shoestring.data.seeded import IGNORED
from shoestring.layers.seqboat.attention_reach import Chunks, Everywhere, Reach, Window
from shoestring.layers.seqboat.seqboat import SeqBoat, activity_by_layer
from shoestring.layers.seqboat.sparse_modular_activation import RouterOptions
from shoestring.models.seqboat import SeqBoatLM
from shoestring.systems.seqboat.claims import ACCURACY, LEAST_ACTIVITY, LOSS, MEAN_ACTIVITY, STEP_TIME
from shoestring.training.plan import TrainingPlan
from shoestring.training.trainer import Trainer
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import time_pair

SEQBOAT, EMA, CHUNKS, FULL = "SeqBoat", "moving average alone", "Mega-chunk", "full attention"
ROUTER = RouterOptions(init_temperature_scale=0.3, warmup=400, centred=True, gradient_floor=1e-3)
"""As published (all but the first at their defaults) a layer falls silent within 50 steps, before attention
has learnt anything, and for good, or runs everywhere: the reasons are those of `RouterLogits`."""
HELD_OUT = 1_000_000
"""The first step whose batches judge; training ends long before."""


@dataclass(frozen=True)
class RecallSettings:
    """The task, the size of the models, and how long each is trained.

    judged: batches that judge. full_steps: of full attention, which learns it sooner.
    """

    task: ScatteredRecall = field(default_factory=ScatteredRecall)
    window: int = 64
    d_model: int = 64
    d_qk: int = 32
    n_states: int = 8
    steps: int = 1000
    full_steps: int = 300
    judged: int = 16
    rounds: int = 11


@dataclass
class Trained:
    """A trained arm and what it does on unseen sequences. activity: by layer."""

    model: nn.Module
    loss: float
    accuracy: float
    activity: Mapping[str, float]


def arms(window: int) -> dict[str, tuple[Reach | None, RouterOptions | None]]:
    """How far each arm attends, and whether tokens choose to."""
    return {
        SEQBOAT: (Window(window), ROUTER),
        EMA: (None, None),
        CHUNKS: (Chunks(window), None),
        FULL: (Everywhere(), None),
    }


def recall_rows(settings: RecallSettings, seed: int) -> tuple[list[Row], list[str]]:
    """Rows of quality, activity and the time of a step, and notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        trained = {name: train_arm(settings, name, seed) for name in arms(settings.window)}
    notes = sorted({f"{warning.message}" for warning in caught if "the router" in str(warning.message)})
    ours, chunks = trained[SEQBOAT], trained[CHUNKS]
    shares = list(ours.activity.values())
    rows = [
        ACCURACY.row(baseline=chunks.accuracy, method=ours.accuracy, against=CHUNKS),
        LOSS.row(baseline=trained[EMA].loss, method=ours.loss, against=EMA),
        MEAN_ACTIVITY.row(baseline=1.0, method=sum(shares) / len(shares), against=CHUNKS),
        LEAST_ACTIVITY.row(baseline=1.0, method=min(shares), against=CHUNKS),
        step_time(settings, ours.model, chunks.model),
        *(_accuracy(f"recall accuracy, {name}", trained[name]) for name in (EMA, FULL)),
        *(
            Row(metric=f"share of tokens that attend, layer {number}", kind="compute", unit="",
                better="lower", baseline=1.0, method=share)
            for number, share in enumerate(shares, 1)
        ),
    ]  # fmt: skip
    notes.append(
        f"recall: {settings.steps} steps each, {settings.full_steps} of full attention; in the first "
        f"{ROUTER.warmup} of SeqBoat's every token attends and counts by its probability; that, tokens "
        "less their mean and a floor under the router's gradients are ours, not the paper's"
    )
    return rows, notes


def train_arm(settings: RecallSettings, name: str, seed: int) -> Trained:
    """One arm from scratch; the seed decides its start, the task its batches."""
    reach, router = arms(settings.window)[name]
    task = settings.task
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = partial(SeqBoat, reach=reach, router=router, d_qk=settings.d_qk, n_states=settings.n_states)
        model = SeqBoatLM(
            layer, vocab_size=task.vocabulary, d_model=settings.d_model, n_layers=2, n_outputs=task.values
        )
    steps = settings.full_steps if name == FULL else settings.steps
    plan = TrainingPlan(
        steps=steps, learning_rate=3e-3, betas=(0.9, 0.98), schedule="linear", warmup_steps=steps // 10,
        optimizer="adam", seed=seed,
    )  # fmt: skip
    Trainer(model, answer_loss, plan).run(task)
    return judge(model, [task(HELD_OUT + number) for number in range(settings.judged)])


def answer_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy at the tokens that ask."""
    tokens, targets = batch
    loss: Tensor = F.cross_entropy(model(tokens).transpose(1, 2), targets, ignore_index=IGNORED)
    return loss


@torch.inference_mode()
def judge(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Trained:
    """Loss, accuracy in percent and activity over these batches, which are of one size."""
    model.eval()
    losses, hits, activity = [], [], []
    for tokens, targets in batches:
        logits = model(tokens)
        asked = targets != IGNORED
        losses.append(F.cross_entropy(logits[asked], targets[asked]).item())
        hits.append((logits[asked].argmax(-1) == targets[asked]).double().mean().item())
        activity.append(activity_by_layer(model))
    mean = {name: sum(each[name] for each in activity) / len(activity) for name in activity[0]}
    return Trained(model, sum(losses) / len(losses), 100 * sum(hits) / len(hits), mean)


def step_time(settings: RecallSettings, ours: nn.Module, chunks: nn.Module) -> Row:
    """Forward and backward of one batch through the trained models."""
    batch = settings.task(HELD_OUT)
    works = [_step(model, batch) for model in (chunks, ours)]
    timed = time_pair(*works, rounds=settings.rounds)
    return STEP_TIME.row(
        baseline=timed.baseline_seconds, method=timed.method_seconds, ratio=timed.ratio, spread=timed.spread,
        against=CHUNKS,
    )  # fmt: skip


def _step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], object]:
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(answer_loss(model, batch), parameters)


def _accuracy(metric: str, trained: Trained) -> Row:
    return Row(
        metric=metric, kind="quality", unit="%", better="higher", baseline=None, method=trained.accuracy
    )
