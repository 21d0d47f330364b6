"""Fit a language model into a memory budget, make it as fast as it must be, and measure what that cost.

Profile once; divide the budget by an integer program; apply; measure; correct the predictions and solve again
where they were off; tune the scales; save with the proof. The budget counts every byte of the weights' file
and, at a given context, of the KV cache. It is never exceeded. A speed is met by measurement or not at all.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from shoestring.compression.apply import slots
from shoestring.compression.cache_choice import cache_options, check_context
from shoestring.compression.division import BudgetDivision
from shoestring.compression.file_size import file_bytes
from shoestring.compression.fitted import Division, FitSettings, Fitted, Progress
from shoestring.compression.menu import default_menu, options_for
from shoestring.compression.module_formats import is_rewritten
from shoestring.compression.profile import profile
from shoestring.compression.recipe import ModuleRecipe
from shoestring.compression.scale_tuning import packed_weights, tune_scales
from shoestring.compression.speed import Pace, SpeedGoal


def fit(
    original: nn.Module,
    windows: Int[Tensor, "windows tokens"],
    budget_bytes: int | None,
    *,
    context: int | None = None,
    speed: SpeedGoal | None = None,
    settings: FitSettings = FitSettings(),  # noqa: B008  (frozen)
    menu: Sequence[ModuleRecipe] | None = None,
    reserve_bytes: int = 0,
    progress: Progress | None = None,
) -> Fitted:
    """A rewritten copy of `original` whose file (and cache of `context` tokens) fits `budget_bytes`.

    windows: token ids to calibrate on; the last few are kept for comparing choices. budget_bytes: None where
    only a speed is asked for. speed: what decoding must reach; measured on the result, and again where the
    prediction was off. reserve_bytes: part of the budget that is left free. A budget that cannot be met gives
    the smallest reachable model, a speed the fastest within the budget, with `met` False.

    Raises: ValueError for a budget below 1 or neither budget nor speed, too few windows, a context that the
    model cannot hold, or a model that was fitted already or has no weight that a recipe can rewrite.
    """
    say = progress or (lambda what, done, total: None)
    work, learning = _prepare(
        original, windows, budget_bytes, context, speed, settings, menu, reserve_bytes, say
    )
    fitted = work.best()
    if settings.tuning.steps and packed_weights(fitted.model):
        _tune(fitted, work, learning, say)
    fitted.budget_bytes, fitted.file_bytes = budget_bytes, file_bytes(fitted.model)
    fits = budget_bytes is None or fitted.total_bytes <= budget_bytes - reserve_bytes
    if fitted.met and not fits:
        raise RuntimeError(
            f"{fitted.total_bytes} bytes exceed the budget of {budget_bytes}; nothing is saved."
        )
    # Where the plan, which takes the header as long as it can be, found no room, there may be some after all.
    fitted.met = fits
    if speed is not None:
        fitted.speed = work.measured_speed(fitted.model, fitted.choice, fitted.cache)
        fitted.met = fits and fitted.speed is not None and fitted.speed.met
    return fitted


def _tune(fitted: Fitted, work: BudgetDivision, learning: Tensor, say: Progress) -> None:
    """Tune the scales, and undo it where that did not help: few steps only shake what was rounded well."""
    settings = work.settings
    before = {name: tensor.clone() for name, tensor in fitted.model.state_dict().items()}
    tune_scales(
        fitted.model,
        work.original,
        learning,
        settings.tuning,
        generator=torch.Generator().manual_seed(settings.seed),
        autocast=settings.autocast,
        progress=lambda done, total, _: say("tuning scales", done, total),
    )
    tuned = work.measure(fitted.model)
    if tuned < fitted.tuned:
        fitted.tuned = tuned
    else:
        fitted.model.load_state_dict(before)


def divide_only(
    original: nn.Module,
    windows: Int[Tensor, "windows tokens"],
    budget_bytes: int | None,
    *,
    context: int | None = None,
    speed: SpeedGoal | None = None,
    settings: FitSettings = FitSettings(),  # noqa: B008  (frozen)
    menu: Sequence[ModuleRecipe] | None = None,
    reserve_bytes: int = 0,
    progress: Progress | None = None,
) -> Division:
    """The first division that `fit` would apply. Arguments and errors are those of `fit`."""
    say = progress or (lambda what, done, total: None)
    work, _ = _prepare(original, windows, budget_bytes, context, speed, settings, menu, reserve_bytes, say)
    choice, cache, met = work.divide(work.options)
    predicted = None if work.pace is None else work.pace.speed(choice, cache, None)
    return Division(choice, cache, work.fixed_bytes + choice.nbytes, met, work.caches, predicted)


def _prepare(
    original: nn.Module,
    windows: Tensor,
    budget_bytes: int | None,
    context: int | None,
    speed: SpeedGoal | None,
    settings: FitSettings,
    menu: Sequence[ModuleRecipe] | None,
    reserve_bytes: int,
    say: Progress,
) -> tuple[BudgetDivision, Tensor]:
    """Profile; the problem of dividing the budget, and the windows to learn from."""
    if budget_bytes is None and speed is None:
        raise ValueError("nothing is asked for; give budget_bytes, a speed, or both.")
    if budget_bytes is not None and budget_bytes < 1:
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
    room = None if budget_bytes is None else budget_bytes - reserve_bytes
    pace = None if speed is None else Pace(speed, original)
    return BudgetDivision(original, known, room, caches, verification, settings, say, pace), learning


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


def _profiled(what: str, done: int, total: int) -> tuple[int, int]:
    """One count for both parts of the profile: statistics are the first third of the bar."""
    return (done, 3 * total) if what == "statistics" else (total + 2 * done, 3 * total)
