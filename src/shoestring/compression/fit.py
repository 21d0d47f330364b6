"""Fit a language model into a memory budget, and measure what that cost.

Profile once; divide the budget by an integer program; apply; measure; correct the predictions and solve again
where they were off; tune the scales; save with the proof. The budget counts every byte of the weights' file
and, at a given context, of the KV cache. It is never exceeded.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from shoestring.compression.apply import apply, slots, stored_bytes
from shoestring.compression.cache_choice import CacheOption, cache_options, check_context
from shoestring.compression.file_size import file_bytes
from shoestring.compression.menu import default_menu, options_for
from shoestring.compression.module_formats import is_rewritten
from shoestring.compression.profile import Option, Profile, profile
from shoestring.compression.recipe import ModuleRecipe
from shoestring.compression.refinement import corrected, corrections, marginal_losses
from shoestring.compression.scale_tuning import ScaleTuning, tune_scales
from shoestring.compression.solver import BudgetTooSmall, Choice, solve
from shoestring.compression.weight_matrix import weight_matrix
from shoestring.yardstick.language_quality import divergence

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps of it are done, and how many there are."""

HEADER_MARGIN_BYTES = 4096
"""Kept free for the digits that a file's header needs more than a similar one."""

TRUSTED_RATIO = 1.25
"""A prediction within this factor of what was measured is not corrected."""


@dataclass(frozen=True)
class FitSettings:
    """How much work a fit is.

    window: tokens that are seen together. calibration_windows: taken from a text at most, spread over it.
    gradient_windows: windows whose gradients make the sensitivity.
    verification_windows: windows of the calibration text, kept from profile and tuning, on which choices are
    compared. tuning: of the scales. rounds: how often predictions may be corrected and the budget divided
    anew. seed: of everything that is drawn. autocast: the type of matrix products while measuring.
    """

    window: int = 512
    calibration_windows: int = 52
    gradient_windows: int = 16
    verification_windows: int = 4
    tuning: ScaleTuning = field(default_factory=ScaleTuning)
    rounds: int = 1
    seed: int = 0
    autocast: torch.dtype | None = None


@dataclass(frozen=True)
class Attempt:
    """One division of the budget: predicted and measured divergence (nats a token) before tuning."""

    predicted: float
    measured: float
    nbytes: int


@dataclass
class Fitted:
    """A model that was rewritten to meet a budget.

    choice: what was chosen for each weight, losses as predicted at first. file_bytes: of the weights' file.
    cache: the KV cache that goes with it, None without a context. attempts: the divisions that were tried.
    tuned: measured divergence after tuning, which is undone where it did not help. profile: what was known,
    for other budgets.
    met: False if the budget was below the smallest reachable size, at which the model then is.
    caches: all the caches that were compared.
    """

    model: nn.Module
    choice: Choice
    budget_bytes: int
    file_bytes: int
    cache: CacheOption | None
    attempts: list[Attempt]
    tuned: float
    profile: Profile
    met: bool
    caches: Sequence[CacheOption] = ()

    @property
    def total_bytes(self) -> int:
        """File and cache."""
        return self.file_bytes + (0 if self.cache is None else self.cache.nbytes)

    @property
    def recipes(self) -> dict[str, ModuleRecipe]:
        """The recipe of every weight that was rewritten, by slot name."""
        return {name: option.recipe for name, option in self.choice.options.items()}


def fit(
    original: nn.Module,
    windows: Int[Tensor, "windows tokens"],
    budget_bytes: int,
    *,
    context: int | None = None,
    settings: FitSettings = FitSettings(),
    menu: Sequence[ModuleRecipe] | None = None,
    reserve_bytes: int = 0,
    progress: Progress | None = None,
) -> Fitted:
    """A rewritten copy of `original` whose file (and cache of `context` tokens) fits `budget_bytes`.

    windows: token ids to calibrate on; the last few are kept for comparing choices. reserve_bytes: part of
    the budget that is left free. A budget that cannot be met gives the smallest reachable model, with `met`
    False.

    Raises: ValueError for a budget below 1, too few windows, a context that the model cannot hold, or a model
    that was fitted already or has no weight that the menu's recipes can rewrite.
    """
    say = progress or (lambda what, done, total: None)
    work, learning = _prepare(original, windows, budget_bytes, context, settings, menu, reserve_bytes, say)
    fitted = work.best()
    if settings.tuning.steps:
        before = {name: tensor.clone() for name, tensor in fitted.model.state_dict().items()}
        tune_scales(
            fitted.model,
            original,
            learning,
            settings.tuning,
            generator=torch.Generator().manual_seed(settings.seed),
            autocast=settings.autocast,
            progress=lambda done, total, _: say("tuning scales", done, total),
        )
        tuned = work.measure(fitted.model)
        if tuned < fitted.tuned:
            fitted.tuned = tuned
        else:  # few steps only shake what was rounded well
            fitted.model.load_state_dict(before)
    fitted.budget_bytes, fitted.file_bytes = budget_bytes, file_bytes(fitted.model)
    fits = fitted.total_bytes <= budget_bytes - reserve_bytes
    if fitted.met and not fits:
        raise RuntimeError(
            f"{fitted.total_bytes} bytes exceed the budget of {budget_bytes}; nothing is saved."
        )
    # Where the plan, which takes the header as long as it can be, found no room, there may be some after all.
    fitted.met = fits
    return fitted


@dataclass(frozen=True)
class Division:
    """A division of a budget that was not applied. file_bytes: an upper bound of the weights' file.

    caches: all that were compared.
    """

    choice: Choice
    cache: CacheOption | None
    file_bytes: int
    met: bool
    caches: Sequence[CacheOption] = ()


def divide_only(
    original: nn.Module,
    windows: Int[Tensor, "windows tokens"],
    budget_bytes: int,
    *,
    context: int | None = None,
    settings: FitSettings = FitSettings(),
    menu: Sequence[ModuleRecipe] | None = None,
    reserve_bytes: int = 0,
    progress: Progress | None = None,
) -> Division:
    """The first division that `fit` would apply. Arguments and errors are those of `fit`."""
    say = progress or (lambda what, done, total: None)
    work, _ = _prepare(original, windows, budget_bytes, context, settings, menu, reserve_bytes, say)
    choice, cache, met = work.divide(work.options)
    return Division(choice, cache, work.fixed_bytes + choice.nbytes, met, work.caches)


def _prepare(
    original: nn.Module,
    windows: Tensor,
    budget_bytes: int,
    context: int | None,
    settings: FitSettings,
    menu: Sequence[ModuleRecipe] | None,
    reserve_bytes: int,
    say: Progress,
) -> tuple["_Division", Tensor]:
    """Profile; the problem of dividing the budget, and the windows to learn from."""
    if budget_bytes < 1:
        raise ValueError(f"a budget of {budget_bytes} bytes holds nothing; give 1 MiB or more.")
    if context is not None:
        check_context(original, context)
    menu = default_menu() if menu is None else menu
    _check_rewritable(original, menu)
    learning, verification = split_windows(windows, settings)
    known = profile(
        original,
        learning,
        menu,
        gradient_windows=min(settings.gradient_windows, len(learning)),
        seed=settings.seed,
        autocast=settings.autocast,
        progress=lambda what, done, total: say("profiling", *_profiled(what, done, total)),
    )
    caches = [] if context is None else cache_options(original, context, verification, settings.autocast)
    room = budget_bytes - reserve_bytes
    return _Division(original, known, room, caches, verification, settings, say), learning


def _check_rewritable(model: nn.Module, menu: Sequence[ModuleRecipe]) -> None:
    if any(is_rewritten(module) for module in model.modules()):
        raise ValueError("the model was fitted already; fit the one that it was made from.")
    if not any(options_for(slot, menu) for slot in slots(model)):
        raise ValueError(f"{type(model).__name__} has no weight that a recipe of the menu can rewrite.")


def within_context(settings: FitSettings, model: nn.Module) -> FitSettings:
    """The settings with windows no longer than the model can see."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return settings if limit is None else replace(settings, window=min(settings.window, limit))


def split_windows(
    windows: Int[Tensor, "windows tokens"], settings: FitSettings
) -> tuple[Int[Tensor, "learning tokens"], Int[Tensor, "verification tokens"]]:
    """Windows to learn from, and the last ones, on which choices are compared.

    Raises: ValueError if there are too few.
    """
    needed = settings.verification_windows + 1
    if len(windows) < needed:
        raise ValueError(
            f"the calibration text gives {len(windows)} windows of {windows.shape[1]} tokens, {needed} are "
            "needed; give more text or a smaller window."
        )
    cut = len(windows) - settings.verification_windows
    return windows[:cut], windows[cut:]


class _Division:
    """Divides one budget over the weights of one model, tries the result, and learns from it."""

    def __init__(
        self,
        original: nn.Module,
        known: Profile,
        budget_bytes: int,
        caches: Sequence[CacheOption],
        verification: Tensor,
        settings: FitSettings,
        say: Progress,
    ) -> None:
        self.original, self.known, self.budget_bytes = original, known, budget_bytes
        self.caches, self.verification, self.settings, self.say = caches, verification, settings, say
        self.options = {name: own for name, own in known.options.items() if own}
        self.fixed_bytes = fixed_bytes(original, self.options)

    def best(self) -> Fitted:
        """The best of the first division and those after corrections, by measured divergence."""
        first = self.attempt(self.options)
        attempts, best, options = [first.attempts[0]], first, self.options
        for _ in range(self.settings.rounds if first.met else 0):
            last = attempts[-1]
            if 1 / TRUSTED_RATIO <= last.measured / max(last.predicted, 1e-9) <= TRUSTED_RATIO:
                break
            falls = marginal_losses(
                best.model,
                self.original,
                self.verification[: max(1, len(self.verification) // 2)],
                autocast=self.settings.autocast,
                progress=lambda done, total: self.say("measuring blocks", done, total),
            )
            options = corrected(self.options, corrections(best.choice.options, falls))
            again = self.attempt(options)
            attempts.append(again.attempts[0])
            if again.attempts[0].measured < best.attempts[0].measured:
                best = again
        best.attempts = attempts
        return best

    def attempt(self, options: dict[str, list[Option]]) -> Fitted:
        """Divide the budget by these losses, apply, measure. The choice keeps the first predictions."""
        choice, cache, met = self.divide(options)
        predicted = choice.loss + (0.0 if cache is None else cache.loss)
        first = {name: self._as_first_predicted(name, own) for name, own in choice.options.items()}
        model = copy.deepcopy(self.original)
        apply(
            model,
            {name: option.recipe for name, option in first.items()},
            calibration=self.known.calibration,
            ignore=(),
            progress=lambda _, done, total: self.say("applying", done, total),
        )
        if cache is not None and cache.recipe is not None:
            apply(model, cache.recipe)
        measured = self.measure(model)
        size = file_bytes(model)
        return Fitted(
            model,
            Choice(first, choice.nbytes, sum(o.loss for o in first.values()), choice.gap),
            self.budget_bytes,
            size,
            cache,
            [Attempt(predicted, measured, size)],
            measured,
            self.known,
            met,
            self.caches,
        )

    def divide(self, options: dict[str, list[Option]]) -> tuple[Choice, CacheOption | None, bool]:
        """The best choice for weights and cache together; the smallest one, and False, if none fits."""
        found: list[tuple[float, Choice, CacheOption | None]] = []
        candidates: list[CacheOption | None] = [*self.caches] or [None]
        for cache in candidates:
            room = self.budget_bytes - self.fixed_bytes - (0 if cache is None else cache.nbytes)
            try:
                choice = solve(options, room)
            except BudgetTooSmall:
                continue
            found.append((choice.loss + (0.0 if cache is None else cache.loss), choice, cache))
        if found:
            _, best, chosen_cache = min(found, key=lambda f: f[0])
            return best, chosen_cache, True
        smallest = {name: min(own, key=lambda o: (o.nbytes, o.loss)) for name, own in options.items()}
        total, loss = sum(o.nbytes for o in smallest.values()), sum(o.loss for o in smallest.values())
        least = min(self.caches, key=lambda c: c.nbytes) if self.caches else None
        return Choice(smallest, total, loss, 0.0), least, False

    def measure(self, model: nn.Module) -> float:
        """Divergence from the original on the verification windows, nats a token."""
        return divergence(model, self.original, self.verification, autocast=self.settings.autocast).kld

    def _as_first_predicted(self, name: str, option: Option) -> Option:
        return next(o for o in self.options[name] if o.recipe == option.recipe)


def fixed_bytes(model: nn.Module, options: dict[str, list[Option]]) -> int:
    """Bytes of the file that no choice changes: tensors that stay, and the header, rounded up.

    The header is taken as that of a model whose weights all have five stored tensors.
    """
    rewritten = [slot for slot in slots(model) if slot.name in options]
    weights = sum(weight_matrix(slot.module).nbytes for slot in rewritten)
    line_bytes = 110
    header = file_bytes(model) - stored_bytes(model)
    header += sum(5 * (line_bytes + len(slot.name)) for slot in rewritten)
    return stored_bytes(model) - weights + header + HEADER_MARGIN_BYTES


def _profiled(what: str, done: int, total: int) -> tuple[int, int]:
    """One count for both parts of the profile: statistics are the first third of the bar."""
    return (done, 3 * total) if what == "statistics" else (total + 2 * done, 3 * total)
