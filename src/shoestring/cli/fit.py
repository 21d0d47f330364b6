"""`shoestring fit`: make a model meet a budget of memory, of speed or of both, and prove what it cost."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoestring.cli.console import hide_loading_bars, out, print_json, staged_progress
from shoestring.cli.fit_output import plan_lines, say_not_met, show_proof
from shoestring.cli.sizes import parse_bytes

if TYPE_CHECKING:
    from shoestring.compression.fit_target import Target
    from shoestring.compression.fitted import FitSettings
    from shoestring.compression.proven_fit import Source
    from shoestring.compression.speed import SpeedGoal
    from shoestring.data.text import TextHalves


def fit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A built-in alias, a .gguf file, a folder or a Hugging Face id."
        ),
    ],
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="The budget: 64MiB, 48MB, 1.5GiB. Never exceeded. It may be left out where a speed is asked "
            "for.",
        ),
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Decode at least so many tokens a second on this machine, with the threads that are set, at "
            "the context of --context or else of 128 tokens. Measured on the result, never only predicted.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Count the KV cache for this many tokens in the budget too, and store it in 8, 4 or 2 bits "
            "where that costs less than smaller weights.",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Your own text: its first half calibrates, its second half proves. "
            "[default: the help topics of the Python library]",
        ),
    ] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to save [default: ./MODEL-SIZE]."),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(
            "--gguf",
            metavar="FILE",
            help="Write the fitted model for llama.cpp as well. Only formats that llama.cpp has are chosen "
            "(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0), so 4.5 bits a weight are the least; the budget then holds the "
            "tensor data of FILE too (not its tokenizer and header).",
        ),
    ] = None,
    recipes: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Among which recipes to choose: default, sparse, dual-binary, low-rank, several between "
            "commas, or all. More of them take longer to profile.",
        ),
    ] = "default",
    tuning_steps: Annotated[
        int, typer.Option(min=0, help="Updates of the scales by distillation; 0 for none.")
    ] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Profile and plan only: what would be chosen, nothing saved.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Do nothing where --out already holds this very fit.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the proof as one JSON document on stdout.")
    ] = False,
) -> None:
    """Choose a recipe for every layer so that the model meets a budget with the least loss of quality.

    The budget is a size, a speed of decoding, or both.

    The budget counts every byte of the weights' file (codes, scales, embeddings, norms, header). The first
    run profiles the model, which later budgets use again. The folder that is saved loads in transformers and
    holds its proof (proof.json) and a page to look at (report.html).

    \\b
    shoestring fit smollm2-135m --memory 64MiB --out build/demo
    shoestring fit smollm2-135m --memory 48MiB --text book.txt
    shoestring fit model.gguf --memory 80MiB --context 4096 --dry-run
    shoestring fit smollm2-135m --tokens-per-second 60
    shoestring fit smollm2-135m --memory 48MiB --recipes default,dual-binary
    shoestring fit smollm2-135m --memory 80MiB --gguf small.gguf

    Exit codes: 0 done, 1 the budget cannot be met (the smallest reachable model is saved, or the fastest
    within the size), 2 bad input.
    """
    hide_loading_bars()
    from shoestring.compression.fit_target import LLAMA_CPP, shoestring_target
    from shoestring.compression.fitted import FitSettings
    from shoestring.compression.gguf_export import check_exportable
    from shoestring.compression.menu import family_names
    from shoestring.compression.proven_fit import finished, native_bfloat16
    from shoestring.compression.saved_folder import check_writable
    from shoestring.compression.scale_tuning import ScaleTuning
    from shoestring.data.text import default_halves, file_halves

    budget_bytes = None if memory is None else parse_bytes(memory, "--memory")
    _check_goal(budget_bytes, tokens_per_second)
    if context is not None and context < 1:
        raise ValueError(f"--context {context} holds nothing; give the number of tokens, for example 4096")
    goal = memory or f"{tokens_per_second:g}tps"
    folder = out_folder or Path(f"{Path(model.removesuffix('.gguf')).resolve().name}-{goal}")
    families = family_names(recipes)
    target = shoestring_target(families) if gguf is None else LLAMA_CPP
    if gguf is not None:
        if families != ("default",):
            raise ValueError(
                f"--recipes {recipes}: llama.cpp has formats of its own; leave it out with --gguf"
            )
        _check_gguf(gguf, context, tokens_per_second)
    settings = FitSettings(tuning=ScaleTuning(tuning_steps), seed=seed, autocast=native_bfloat16())
    halves = default_halves() if text is None else file_halves(text)
    if not dry_run:
        if resume and (
            proof := finished(
                folder, model, budget_bytes, context, settings, halves.name, target, tokens_per_second
            )
        ):
            print(f"shoestring: {folder} holds this fit already", file=sys.stderr)
            if gguf is not None and not gguf.exists():
                _export_saved(folder, model, gguf)
            show_proof(proof, folder, gguf, json)
            return
        check_writable(folder)
    source = _source(model)
    if gguf is not None:
        check_exportable(source.model, _gguf_tokenizer(model, source.tokenizer))
    job = Job(
        source, halves, budget_bytes, context, settings, target, _speed(source, tokens_per_second, context)
    )
    if dry_run:
        _plan(job, json)
    else:
        _fit_and_save(job, folder, gguf, json)


def _check_goal(budget_bytes: int | None, tokens_per_second: float | None) -> None:
    if budget_bytes is None and tokens_per_second is None:
        raise ValueError("no budget; give --memory 64MiB, --tokens-per-second 40, or both")
    if tokens_per_second is not None and not (math.isfinite(tokens_per_second) and tokens_per_second > 0):
        raise ValueError(
            f"--tokens-per-second {tokens_per_second:g} is no speed; give a number above 0, for example 40"
        )


def _speed(source: "Source", tokens_per_second: float | None, context: int | None) -> "SpeedGoal | None":
    from shoestring.compression.cache_choice import check_context
    from shoestring.compression.decode_clock import StopWatch
    from shoestring.compression.speed import SpeedGoal

    if tokens_per_second is None:
        return None
    if context is not None:
        check_context(source.model, context)
    return SpeedGoal(tokens_per_second, StopWatch(source.model, context))


def _check_gguf(path: Path, context: int | None, tokens_per_second: float | None) -> None:
    from shoestring.files import check_place

    if tokens_per_second is not None:
        raise ValueError(
            "--tokens-per-second is measured with Shoestring's kernels, not llama.cpp's; leave it out with "
            "--gguf"
        )
    if context is not None:
        raise ValueError(
            "--context counts a cache of Shoestring's own, which llama.cpp has not; leave it out with --gguf"
        )
    if path.is_dir():
        raise ValueError(f"--gguf {path} is a folder; name a file in it, e.g. {path / 'model.gguf'}")
    check_place(path)


def _gguf_tokenizer(name: str, tokenizer: Any) -> Any:
    """The GGUF file that the model comes from, whose tokenizer is copied as it is; else the loaded one."""
    from shoestring.models.built_in import BUILT_IN, built_in_file

    path = built_in_file(name) if name in BUILT_IN else Path(name)
    return path if path.is_file() else tokenizer


def _export_saved(folder: Path, name: str, gguf: Path) -> None:
    from transformers import AutoTokenizer

    from shoestring.compression.gguf_export import export_gguf
    from shoestring.compression.saved_folder import load

    export_gguf(load(folder), _gguf_tokenizer(name, AutoTokenizer.from_pretrained(folder)), gguf)


def _source(name: str) -> "Source":
    from shoestring.compression.load_model import disk_bytes, load_model
    from shoestring.compression.proven_fit import Source

    model, tokenizer = load_model(name)
    return Source(name, model, tokenizer, disk_bytes(name))


@dataclass(frozen=True)
class Job:
    """What is to be fitted, and into what."""

    source: "Source"
    halves: "TextHalves"
    budget_bytes: int | None
    context: int | None
    settings: "FitSettings"
    target: "Target"
    speed: "SpeedGoal | None"

    @property
    def options(self) -> dict[str, Any]:
        """What `proven_fit` and `planned_fit` take by name."""
        return {
            "context": self.context,
            "speed": self.speed,
            "settings": self.settings,
            "target": self.target,
        }


def _fit_and_save(job: Job, folder: Path, gguf: Path | None, json: bool) -> None:
    from shoestring.compression.fit_report import build_page
    from shoestring.compression.gguf_export import export_gguf
    from shoestring.compression.proven_fit import proven_fit, save_fit

    with staged_progress() as progress:
        fitted, proof = proven_fit(job.source, job.halves, job.budget_bytes, progress=progress, **job.options)
        save_fit(fitted, proof, job.source.tokenizer, folder, build_page(proof))
        if gguf is not None:
            tokenizer = _gguf_tokenizer(job.source.name, job.source.tokenizer)
            try:
                export_gguf(fitted.model, tokenizer, gguf)
            except OSError as error:
                reason = error.strerror or error
                raise OSError(f"{gguf} was not written ({reason}); {folder} holds the model") from error
    show_proof(proof, folder, gguf, json)


def _plan(job: Job, json: bool) -> None:
    from shoestring.compression.proven_fit import planned_fit

    with staged_progress() as progress:
        plan = planned_fit(job.source, job.halves, job.budget_bytes, progress=progress, **job.options)
    if json:
        print_json(plan)
    else:
        console = out()
        for line in plan_lines(plan):
            console.print(line)
    if not plan["met"]:
        say_not_met(plan)
