"""The main job, from a loaded model to a saved folder: fit, prove on held-out text, save with the proof.

`proof.json` holds everything that the report shows.
"""

import copy
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import nn

from shoestring.compression.before_after import State, measure_states
from shoestring.compression.cache_choice import cached_divergence, check_context
from shoestring.compression.file_size import file_bytes
from shoestring.compression.fit import divide_only, fit, split_windows, within_context
from shoestring.compression.fit_target import SHOESTRING, Target
from shoestring.compression.fitted import FitSettings, Fitted, Progress
from shoestring.compression.group_quantize import PackedRecipe
from shoestring.compression.profile import Option
from shoestring.compression.proof_parts import (
    cache_json,
    curve,
    layers,
    recipe_json,
    settings_json,
    speed_json,
)
from shoestring.compression.ranking_controls import ranking_controls
from shoestring.compression.saved_folder import read_proof, save
from shoestring.compression.speed import SpeedGoal
from shoestring.data.text import TextHalves, token_windows
from shoestring.generation.cache_bytes import bytes_for
from shoestring.generation.text_stream import Tokenizer
from shoestring.notices import record_fallbacks
from shoestring.yardstick.environment import Environment

PROOF_WINDOWS = 24
"""Held-out windows at most."""


@dataclass(frozen=True)
class Source:
    """The model to be fitted. name: as the user called it. disk_bytes: of its weights as shipped."""

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    disk_bytes: int


class NothingToDo(ValueError):
    """The model meets the budget as it is."""


def proven_fit(
    source: Source,
    text: TextHalves,
    budget_bytes: int | None,
    *,
    context: int | None = None,
    speed: SpeedGoal | None = None,
    settings: FitSettings,
    target: Target = SHOESTRING,
    progress: Progress | None = None,
) -> tuple[Fitted, dict[str, Any]]:
    """Fit a model and measure it before and after on the held-out half of the text; the model and its proof.

    Raises: ValueError for a text too short for one window, or as `fit` does; NothingToDo if the model is
    small enough already.
    """
    say = progress or (lambda what, done, total: None)
    _check_budget(source, budget_bytes, context, speed)
    began = time.monotonic()
    asked, settings = settings, within_context(settings, source.model)
    window = settings.window
    calibration = calibration_windows(text, source.tokenizer, settings)
    held_out = token_windows(
        text.held_out, source.tokenizer, window, limit=PROOF_WINDOWS, name="the held-out text"
    )
    with record_fallbacks() as fallbacks:
        fitted = fit(
            source.model,
            calibration,
            budget_bytes,
            context=context,
            speed=speed,
            settings=settings,
            menu=target.menu(),
            reserve_bytes=target.extra_bytes(source.model),
            progress=say,
        )
        controls = _controls(source.model, fitted, calibration, settings)
        half = copy.deepcopy(source.model).half()
        states = [
            State("as shipped", source.model, source.disk_bytes),
            State("as float16", half, file_bytes(half)),
            State("fitted", fitted.model, fitted.file_bytes),
        ]
        measured = measure_states(
            states, source.model, source.tokenizer, held_out, autocast=settings.autocast, progress=say
        )
    proof = {
        "model": source.name,
        "budget_bytes": budget_bytes,
        "tokens_per_second": None if speed is None else speed.tokens_per_second,
        "context": context,
        "met": fitted.met,
        "speed": speed_json(fitted.speed),
        "file_bytes": fitted.file_bytes,
        "cache_bytes": None if fitted.cache is None else fitted.cache.nbytes,
        "cache": recipe_json(fitted.cache),
        "cache_kld": _cache_kld(source.model, fitted, held_out, settings),
        "caches": [cache_json(option) for option in fitted.caches],
        "target": target.name,
        "exported_bytes": target.exported_bytes(fitted.model) if target.exported_bytes else None,
        "attempts": [{**asdict(attempt), "speed": speed_json(attempt.speed)} for attempt in fitted.attempts],
        "verified_after_tuning": fitted.tuned,
        "layers": layers(source.model, fitted.choice),
        "curve": curve(source.model, fitted),
        "controls": controls,
        "states": [state.to_dict() for state in measured],
        "text": {
            "name": text.name,
            "calibration_windows": len(calibration),
            "held_out_windows": len(held_out),
        },
        "settings": settings_json(asked),
        "fallbacks": fallbacks,
        "seconds": time.monotonic() - began,
        "environment": asdict(Environment.here(["transformers", "safetensors", "scipy"])),
    }
    return fitted, proof


def calibration_windows(
    text: TextHalves, tokenizer: Tokenizer, settings: FitSettings
) -> Int[torch.Tensor, "windows window"]:
    """Windows of the calibration half, evenly spread over it where it has more than are asked for.

    Raises: ValueError if the text is too short for one.
    """
    windows = token_windows(text.calibration, tokenizer, settings.window, name="the calibration text")
    count = min(len(windows), settings.calibration_windows)
    return windows[torch.linspace(0, len(windows) - 1, count).round().long()]


def planned_fit(
    source: Source,
    text: TextHalves,
    budget_bytes: int | None,
    *,
    context: int | None = None,
    speed: SpeedGoal | None = None,
    settings: FitSettings,
    target: Target = SHOESTRING,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What `proven_fit` would begin with: the first division of the budget, nothing applied.

    Raises: as `proven_fit`.
    """
    _check_budget(source, budget_bytes, context, speed)
    settings = within_context(settings, source.model)
    calibration = calibration_windows(text, source.tokenizer, settings)
    division = divide_only(
        source.model,
        calibration,
        budget_bytes,
        context=context,
        speed=speed,
        settings=settings,
        menu=target.menu(),
        reserve_bytes=target.extra_bytes(source.model),
        progress=progress,
    )
    cache = division.cache
    return {
        "model": source.name,
        "budget_bytes": budget_bytes,
        "tokens_per_second": None if speed is None else speed.tokens_per_second,
        "context": context,
        "met": division.met,
        "speed": speed_json(division.speed),
        "file_bytes": division.file_bytes,
        "cache_bytes": None if cache is None else cache.nbytes,
        "cache": recipe_json(cache),
        "caches": [cache_json(option) for option in division.caches],
        "target": target.name,
        "layers": layers(source.model, division.choice),
    }


def save_fit(
    fitted: Fitted, proof: dict[str, Any], tokenizer: Tokenizer, folder: str | os.PathLike[str], page: str
) -> Path:
    """Save the model, its proof and its report, all or nothing. Raises: as `save`."""
    recipes: Mapping[str, Any] = fitted.recipes
    return save(
        fitted.model, tokenizer, folder, recipe=dict(recipes), proof=proof, pages={"report.html": page}
    )


def finished(
    folder: str | os.PathLike[str],
    source: str,
    budget_bytes: int | None,
    context: int | None,
    settings: FitSettings,
    text_name: str,
    target: Target = SHOESTRING,
    tokens_per_second: float | None = None,
) -> dict[str, Any] | None:
    """The proof in `folder` if it is that of the same job, done before; else None."""
    proof = read_proof(folder)
    if proof is None:
        return None
    same = {
        "model": source,
        "budget_bytes": budget_bytes,
        "tokens_per_second": tokens_per_second,
        "context": context,
        "settings": settings_json(settings),
        "target": target.name,
    }
    if any(proof.get(key) != value for key, value in same.items()):
        return None
    return proof if proof["text"]["name"] == text_name else None


def _check_budget(
    source: Source, budget_bytes: int | None, context: int | None, speed: SpeedGoal | None
) -> None:
    """Raises: NothingToDo if the model, with a cache in full where there is a context, fits as it is, and is
    as fast as is asked for."""
    cache, counted = 0, ""
    if context is not None:
        check_context(source.model, context)
        config: Any = source.model.config
        cache = bytes_for(config, context, dtype=next(source.model.parameters()).dtype)
        counted = f" and {cache} bytes of cache"
    if budget_bytes is not None and budget_bytes < source.disk_bytes + cache:
        return
    if speed is not None:
        own = 1 / speed.clock.step_seconds(source.model)
        if own < speed.tokens_per_second:
            return
        raise NothingToDo(
            f"{source.name} decodes {own:.1f} tokens/s as it is, and is small enough; ask for more than "
            f"{speed.tokens_per_second:g} tokens/s, or for a smaller size."
        )
    raise NothingToDo(
        f"{source.name} takes {source.disk_bytes} bytes as shipped{counted}, which the budget of "
        f"{budget_bytes} holds already; give a smaller budget."
    )


def _cache_kld(
    model: nn.Module, fitted: Fitted, held_out: torch.Tensor, settings: FitSettings
) -> float | None:
    """Divergence of the fitted model when it reads its quantised cache; None where it has none."""
    if fitted.cache is None or fitted.cache.recipe is None:
        return None
    return cached_divergence(fitted.model, model, fitted.cache.recipe, held_out, settings.autocast)


def _controls(
    model: nn.Module, fitted: Fitted, calibration: torch.Tensor, settings: FitSettings
) -> dict[str, Any] | None:
    """The ranking controls between 3 and 4 bits; None where the menu has no such formats."""
    _, verification = split_windows(calibration, settings)
    try:
        result = ranking_controls(
            model,
            fitted.profile,
            verification[: max(1, len(verification) // 2)],
            narrow=lambda option: _is_format(option, 3),
            wide=lambda option: _is_format(option, 4),
            seed=settings.seed,
            autocast=settings.autocast,
        )
    except ValueError:
        return None
    return {**asdict(result), "holds": result.holds}


def _is_format(option: Option, bits: int) -> bool:
    return (
        isinstance(option.recipe, PackedRecipe)
        and option.recipe.bits == bits
        and option.recipe.group_size == 64
    )


def native_bfloat16() -> torch.dtype | None:
    """bfloat16 where this processor multiplies it natively, else None: it would be slower than float32."""
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
