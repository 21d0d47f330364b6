"""`shoestring fit`: make a model meet a memory budget, and prove what it cost."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoestring.cli.console import Exit, out, print_json, staged_progress
from shoestring.cli.sizes import format_bytes, parse_bytes

if TYPE_CHECKING:
    from shoestring.compression.proven_fit import Source

OPTIONS_SHOWN = 12


def fit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A built-in alias, a .gguf file, a folder or a Hugging Face id."
        ),
    ],
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="The budget: 64MiB, 48MB, 1.5GiB. Never exceeded.")
    ],
    context: Annotated[
        int | None, typer.Option(help="Count the KV cache for this many tokens in the budget too.")
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

    The budget counts every byte of the weights' file (codes, scales, embeddings, norms, header). The first
    run profiles the model, which later budgets use again. The folder that is saved loads in transformers and
    holds its proof (proof.json) and a page to look at (report.html).

    \\b
    shoestring fit smollm2-135m --memory 64MiB --out build/demo
    shoestring fit smollm2-135m --memory 48MiB --text book.txt
    shoestring fit model.gguf --memory 80MiB --context 4096 --dry-run

    Exit codes: 0 done, 1 the budget cannot be met (the smallest reachable model is saved), 2 bad input.
    """
    from shoestring.compression.fit import FitSettings
    from shoestring.compression.proven_fit import finished, native_bfloat16
    from shoestring.compression.saved_folder import check_writable
    from shoestring.compression.scale_tuning import ScaleTuning
    from shoestring.data.text import default_halves, file_halves

    budget_bytes = parse_bytes(memory, "--memory")
    folder = out_folder or Path(f"{Path(model).stem}-{memory}")
    settings = FitSettings(tuning=ScaleTuning(tuning_steps), seed=seed, autocast=native_bfloat16())
    halves = default_halves() if text is None else file_halves(text)
    if not dry_run:
        if resume and (proof := finished(folder, model, budget_bytes, context, settings, halves.name)):
            print(f"shoestring: {folder} holds this fit already", file=sys.stderr)
            _finish(proof, folder, json)
            return
        check_writable(folder)
    source = _source(model)
    if dry_run:
        _plan(source, halves, budget_bytes, context, settings, json)
        return
    _fit_and_save(source, halves, budget_bytes, context, settings, folder, json)


def _source(name: str) -> "Source":
    from shoestring.cli.model_source import hide_loading_bars

    hide_loading_bars()
    from shoestring.compression.load_model import disk_bytes, load_model
    from shoestring.compression.proven_fit import Source

    model, tokenizer = load_model(name)
    return Source(name, model, tokenizer, disk_bytes(name))


def _fit_and_save(
    source: "Source", halves: Any, budget: int, context: int | None, settings: Any, folder: Path, json: bool
) -> None:
    from shoestring.compression.fit_report import build_page
    from shoestring.compression.proven_fit import proven_fit, save_fit

    with staged_progress() as progress:
        fitted, proof = proven_fit(
            source, halves, budget, context=context, settings=settings, progress=progress
        )
        save_fit(fitted, proof, source.tokenizer, folder, build_page(proof))
    _finish(proof, folder, json)


def _plan(source: "Source", halves: Any, budget: int, context: int | None, settings: Any, json: bool) -> None:
    from shoestring.compression.proven_fit import planned_fit

    with staged_progress() as progress:
        plan = planned_fit(source, halves, budget, context=context, settings=settings, progress=progress)
    if json:
        print_json(plan)
    else:
        console = out()
        for line in _plan_lines(plan):
            console.print(line)
    if not plan["met"]:
        _say_not_met(plan)


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    counts: dict[str, list[int]] = {}
    for layer in plan["layers"]:
        recipe = layer["recipe"]
        kind = f"{recipe['recipe']} {recipe['bits']} bits, groups of {recipe['group_size']}"
        entry = counts.setdefault(kind, [0, 0])
        entry[0] += 1
        entry[1] += layer["bytes"]
    rows = sorted(counts.items(), key=lambda item: -item[1][1])
    lines = [f"{n:4d} weights  {format_bytes(size):>10}  {kind}" for kind, (n, size) in rows[:OPTIONS_SHOWN]]
    predicted = sum(layer["predicted_loss"] for layer in plan["layers"])
    lines.append(
        f"{format_bytes(plan['file_bytes'])} of {format_bytes(plan['budget_bytes'])}; "
        f"predicted divergence {predicted:.4f} nats a token (layer by layer, before correction and tuning)"
    )
    return lines


def _finish(proof: dict[str, Any], folder: Path, json: bool) -> None:
    if json:
        print_json(proof)
    else:
        console = out()
        console.print(_table(proof))
        console.print(f"saved in {folder}; look at {folder / 'report.html'}", soft_wrap=True)
    if not proof["met"]:
        _say_not_met(proof)


def _say_not_met(document: dict[str, Any]) -> None:
    total = document["file_bytes"] + (document["cache_bytes"] or 0)
    print(
        f"shoestring: {format_bytes(document['budget_bytes'])} cannot be met; the smallest reachable size is "
        f"{format_bytes(total)} ({total} bytes)",
        file=sys.stderr,
    )
    raise typer.Exit(Exit.SHORT)


def _table(proof: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"{proof['model']} in {format_bytes(proof['budget_bytes'])}", title_justify="left", box=None
    )
    for column in ("", "file", "peak", "tokens/s", "perplexity", "95 %", "KLD"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for state in proof["states"]:
        quality, model = state["quality"], state["quality"]["model"]
        low, high = model["interval"]
        table.add_row(
            state["name"],
            format_bytes(state["disk_bytes"]),
            format_bytes(state["peak_bytes"]),
            f"{state['tokens_per_second']:.1f}",
            f"{model['ppl']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{quality['kld']:.4f}",
        )
    return table
