"""One loop that trains any model: steps, evaluations, checkpoints, and an exact resume after any kill."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.errors import TrainingDiverged
from shoestring.layers.parameter_hint import hinted_parameters
from shoestring.training import data_parallel
from shoestring.training.batch import split_batch, to_device
from shoestring.training.checkpoint import (
    Checkpoint,
    Tensors,
    load_checkpoint,
    model_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from shoestring.training.interrupt import Interrupt, held_back_interrupt
from shoestring.training.metrics_log import MetricsLog
from shoestring.training.optimizers import build_optimizer, set_rates
from shoestring.training.plan import TrainingPlan
from shoestring.training.progress import step_bar
from shoestring.training.record import Evaluation, TrainingRecord
from shoestring.training.run_folder import check_same_run, own_folder
from shoestring.training.seeds import kept_generators, seed_everything

Loss = Callable[[nn.Module, Any], Tensor]
Batches = Callable[[int], Any]
Evaluate = Callable[[nn.Module], float]


class Trainer:
    """Trains `model` in place by `plan`.

    loss: (model, batch) -> scalar, a mean over the batch's samples where the plan accumulates or several
    processes share the work. folder: where checkpoints and `metrics.jsonl` go; a run that finds a checkpoint
    there goes on from it, with the same weights, bit for bit, as if it had never stopped. checkpoint_every:
    steps. evaluate: lower is better; called in eval mode, without gradients, as often as the plan says.
    on_step: called with (trainer, number of the step from 0, its loss) after each step. progress: a bar on
    stderr. tensorboard: event files in the folder too. Where torch.distributed is initialised, every process
    trains its share of each batch, and process 0 writes.

    Raises: ValueError for a plan that evaluates without `evaluate`, `checkpoint_every` below 1, TensorBoard
    without a folder, or a model without gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        plan: TrainingPlan,
        *,
        folder: Path | str | None = None,
        checkpoint_every: int = 500,
        evaluate: Evaluate | None = None,
        on_step: "Callable[[Trainer, int, float], None] | None" = None,
        progress: bool = False,
        tensorboard: bool = False,
    ) -> None:
        if (plan.evaluate_every is None) != (evaluate is None):
            raise ValueError(
                f"evaluate_every={plan.evaluate_every} and evaluate={evaluate}: give both or neither"
            )
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every={checkpoint_every} must be 1 or more")
        if tensorboard and folder is None:
            raise ValueError("tensorboard=True writes files: give folder too")
        self.model, self.loss, self.plan = model, loss, plan
        self.folder = None if folder is None else Path(folder)
        self.checkpoint_every, self.evaluate, self.on_step = checkpoint_every, evaluate, on_step
        self.progress, self.tensorboard = progress, tensorboard
        self.optimizer = build_optimizer(model, plan)
        self.step = 0
        """Steps that are done."""
        self._names: dict[Tensor, str] = {parameter: name for name, parameter, _ in hinted_parameters(model)}
        self._trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._device = self._trained[0].device
        self._rank, self._world = data_parallel.world()
        self._losses: list[float] = []
        self._evaluations: list[Evaluation] = []
        self._best: Tensors | None = None
        self._seconds = 0.0
        self._saved_at: int | None = None

    def run(self, batches: Batches) -> TrainingRecord:
        """Train to the end of the plan, from the folder's last checkpoint where there is one.

        batches: number of the step, from 0, -> the batch, a function of nothing else, so that a resumed run
        sees the same ones; with several processes the joined batch. A batch that is split (accumulation,
        processes) is a tensor or a nest of tensors with samples along the first axis. The model is left in
        eval mode, global random generators as they were. Ctrl-C ends after the step, saves and is raised.

        Raises: TrainingDiverged at the step whose loss or gradient is not finite, with the weights before it;
        ValueError if the folder holds a run of another plan or model, is in use, or for a loss that is no
        scalar with gradients.
        """
        own = own_folder(self.folder if self._rank == 0 else None)
        with own, kept_generators(self._device), held_back_interrupt() as interrupt:
            if self.step == 0:
                self._resume()
            resumed_from = self.step
            if self._world > 1:
                data_parallel.share_weights(self.model)
            with self._log() as log:
                self._train(batches, log, interrupt)
            self._save()
        if self._best is not None:
            self.model.load_state_dict(self._best)
        self.model.eval()
        return TrainingRecord(
            losses=tuple(self._losses),
            evaluations=tuple(self._evaluations),
            seconds=self._seconds,
            stopped="finished" if self.step == self.plan.steps else "patience",
            resumed_from=resumed_from,
        )

    def _train(self, batches: Batches, log: MetricsLog, interrupt: Interrupt) -> None:
        self.model.train()
        bar = step_bar(self.plan.steps, self.step) if self.progress and self._rank == 0 else nullcontext()
        with bar as show:
            whole = True
            try:
                while self.step < self.plan.steps and not self._out_of_patience():
                    whole = False
                    loss, interrupted = self._advance(batches, log, interrupt)
                    whole = True
                    if show is not None:
                        show(loss)
                    if self.on_step is not None:
                        self.on_step(self, self.step - 1, loss)
                    if interrupted:
                        raise KeyboardInterrupt
                    if self.step % self.checkpoint_every == 0:
                        self._save()
            except KeyboardInterrupt:
                if whole:  # else weights, optimizer and evaluations may not agree; the last checkpoint does
                    self._save()
                raise

    def _advance(self, batches: Batches, log: MetricsLog, interrupt: Interrupt) -> tuple[float, bool]:
        """One step and the evaluation that is due after it: its loss, and whether Ctrl-C was pressed."""
        start = time.perf_counter()
        set_rates(self.optimizer, self.plan.rate_factor(self.step))
        self.optimizer.zero_grad(set_to_none=True)
        loss, interrupted = self._gradients(batches, interrupt)
        norm = self._clip()
        self.optimizer.step()
        self._losses.append(loss)
        self.step += 1
        values = {"loss": loss, "gradient_norm": norm, "learning_rate": self._rate()}
        every = self.plan.evaluate_every
        if every is not None and self.step % every == 0:
            values["evaluation"] = self._evaluate()
        self._seconds += time.perf_counter() - start
        log.write(self.step, {**values, "seconds": self._seconds})
        return loss, interrupted

    def _gradients(self, batches: Batches, interrupt: Interrupt) -> tuple[float, bool]:
        """Set the gradients of this step's batch; its loss, and whether any process was interrupted."""
        plan = self.plan
        seed_everything(plan.seed, self.step)
        parts = split_batch(batches(self.step), self._world * plan.accumulate)
        if self._world > 1:
            seed_everything(plan.seed, self.step, 1 + self._rank)
        first = self._rank * plan.accumulate
        total = torch.zeros((), dtype=torch.float64)
        for part, share in islice(parts, first, first + plan.accumulate):
            with self._autocast():
                loss = self.loss(self.model, to_device(part, self._device))
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise ValueError(f"loss must give a scalar tensor with gradients, not {_describe(loss)}")
            (loss.sum() * share).backward()
            total += loss.detach().double().cpu().sum() * share
        interrupted = interrupt.asked
        if self._world > 1:
            data_parallel.sum_gradients(self._trained)
            data_parallel.share_buffers(self.model)
            both = torch.stack((total, torch.tensor(float(interrupted), dtype=torch.float64)))
            total, asked = data_parallel.summed(both.to(self._device)).cpu()
            interrupted = bool(asked)
        if not math.isfinite(total.item()):
            raise TrainingDiverged(self._diverged("loss", total.item()))
        return total.item(), interrupted

    def _clip(self) -> float:
        """Bound the gradients; their 2-norm before that."""
        gradients = [p.grad for p in self._trained if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm.item()):
            raise TrainingDiverged(self._diverged("gradient norm", norm.item()))
        if self.plan.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._trained, self.plan.clip_norm, norm)
        return norm.item()

    def _evaluate(self) -> float:
        assert self.evaluate is not None
        with _in_eval_mode(self.model), torch.no_grad():
            value = float(self.evaluate(self.model))
        if self._world > 1:
            value = data_parallel.of_first(value, self._device)
        if math.isnan(value):
            raise TrainingDiverged(self._diverged("evaluation", value))
        best = min((one.value for one in self._evaluations), default=math.inf)
        self._evaluations.append(Evaluation(self.step, value))
        if self.plan.patience is not None and (value < best or self._best is None):
            self._best = model_tensors(self.model)
        return value

    def _out_of_patience(self) -> bool:
        if self.plan.patience is None or not self._evaluations:
            return False
        values = [one.value for one in self._evaluations]
        return len(values) - 1 - values.index(min(values)) >= self.plan.patience

    def _resume(self) -> None:
        if self.folder is None or (checkpoint := load_checkpoint(self.folder)) is None:
            return
        check_same_run(self.folder, checkpoint, self.plan, self.model)
        self.model.load_state_dict(checkpoint.model)
        losses = checkpoint.training.pop("losses")
        notes = checkpoint.notes
        restore_optimizer(self.optimizer, self._names, checkpoint.training, notes["optimizer"])
        self.step = self._saved_at = checkpoint.step
        self._losses = losses.tolist()
        self._evaluations = [Evaluation(steps, value) for steps, value in notes["evaluations"]]
        self._best, self._seconds = checkpoint.best, notes["seconds"]

    def _save(self) -> None:
        if self.folder is not None and self._rank == 0 and self._saved_at != self.step:
            tensors, numbers = optimizer_tensors(self.optimizer, self._names)
            notes = {
                "plan": self.plan.as_json(),
                "optimizer": numbers,
                "evaluations": [(one.steps, one.value) for one in self._evaluations],
                "seconds": self._seconds,
                "torch": torch.__version__,
            }
            losses = torch.tensor(self._losses, dtype=torch.float64)
            training = {**tensors, "losses": losses}
            save_checkpoint(
                self.folder, Checkpoint(self.step, model_tensors(self.model), training, notes, self._best)
            )
            self._saved_at = self.step

    def _log(self) -> MetricsLog:
        folder = self.folder if self._rank == 0 else None
        return MetricsLog(folder, self.step, tensorboard=self.tensorboard and folder is not None)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.plan.precision == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    def _rate(self) -> float:
        return self.plan.learning_rate * self.plan.rate_factor(self.step - 1)

    def _diverged(self, what: str, value: float) -> str:
        return (
            f"the {what} of step {self.step} is {value}, at a learning rate of "
            f"{self.plan.learning_rate * self.plan.rate_factor(self.step):.3g}; lower learning_rate, raise "
            "warmup_steps, or look for bad values in that batch"
        )


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _describe(loss: object) -> str:
    if not isinstance(loss, Tensor):
        return f"a {type(loss).__name__}"
    return f"shape {tuple(loss.shape)}" if loss.numel() != 1 else "one without gradients"
