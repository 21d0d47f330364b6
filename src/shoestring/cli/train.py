"""`shoestring train`: trains a small model by name, resumable, with its cost said beforehand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoestring.cli.console import errors, hide_loading_bars, out, print_json, steps

if TYPE_CHECKING:
    from shoestring.training.small_models import SmallModel
    from shoestring.training.trainer import Trainer


def train(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Which model; left out, they are listed.")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where model and checkpoints go [default: the cache]."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, batches and whatever else is drawn.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped; the result is the same.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Train a small model of this library by name.

    The same seed gives the same weights. What is trained already is not trained again. Ctrl-C saves; --resume
    goes on from there, or from the last checkpoint after a kill.

    \b
    shoestring train                                  which there are
    shoestring train digits-classifier                seconds
    shoestring train pydoc-bytes --dry-run            what it would cost here
    shoestring train pydoc-bytes --out tiny --resume  go on; then: shoestring generate tiny/model "The "
    """
    hide_loading_bars()
    from shoestring.training.small_models import SMALL_MODELS, find_small_model

    if name is None:
        _list(list(SMALL_MODELS.values()), json)
        return
    chosen = find_small_model(name)
    _train(chosen, to or _cached(chosen, seed), seed, resume=resume, dry_run=dry_run, json=json)


def _list(models: "list[SmallModel]", json: bool) -> None:
    if json:
        print_json([{"name": one.name, "about": one.about, "steps": one.plan.steps} for one in models])
        return
    for one in models:
        out().print(f"{one.name}  {one.about}; {one.plan.steps} steps", soft_wrap=True)


def _cached(chosen: "SmallModel", seed: int) -> Path:
    from shoestring.training.trained_folder import trained_folder

    return trained_folder(chosen.name, chosen.plan, seed)


def _train(chosen: "SmallModel", folder: Path, seed: int, *, resume: bool, dry_run: bool, json: bool) -> None:
    from shoestring.files import check_place
    from shoestring.training.checkpoint import steps_done
    from shoestring.training.small_models import seconds_of_a_step, train_small_model

    done = steps_done(folder / "run")
    total = chosen.plan.steps
    if 0 < done < total and not resume and not dry_run:
        raise ValueError(
            f"{folder} holds a run that stopped at step {done} of {total}; --resume goes on, or remove it"
        )
    check_place(folder)
    job = chosen.prepare(seed)
    parameters = sum(parameter.numel() for parameter in job.model.parameters())
    left = total - done
    seconds = job.preparing_seconds() + seconds_of_a_step(job, chosen.plan) * left if left else 0.0
    errors().print(
        f"{chosen.name}: {left} of {total} steps, {parameters:,} parameters, about {_duration(seconds)} "
        f"here; into {folder}",
        soft_wrap=True,
    )
    report = {"name": chosen.name, "folder": str(folder), "seed": seed, "parameters": parameters}
    if dry_run:
        if json:
            print_json({**report, "steps_left": left, "estimated_seconds": seconds})
        return
    with steps(f"training {chosen.name}", max(left, 1)) as advance:

        def on_step(trainer: "Trainer", step: int, loss: float) -> None:
            advance()

        record = train_small_model(chosen, job, folder, seed=seed, on_step=on_step)
    last = record.evaluations[-1].value
    if json:
        measured = {"metric": job.metric, "value": last, "loss": record.losses[-1]}
        print_json(
            {
                **report,
                **measured,
                "steps": record.steps,
                "resumed_from": record.resumed_from,
                "seconds": record.seconds,
                "model": str(folder / "model"),
            }
        )
        return
    out().print(f"{job.metric} {last:.4g} after {record.steps} steps; {folder / 'model'}", soft_wrap=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
