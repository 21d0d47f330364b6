"""`shoestring fit`: make a model meet a memory budget, and prove what it cost."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoestring.cli.console import Exit, hide_loading_bars, out, print_json, staged_progress
from shoestring.cli.sizes import format_bytes, parse_bytes

if TYPE_CHECKING:
    from shoestring.compression.fit import FitSettings
    from shoestring.compression.fit_target import Target
    from shoestring.compression.proven_fit import Source
    from shoestring.data.text import TextHalves

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
    shoestring fit smollm2-135m --memory 80MiB --gguf small.gguf

    Exit codes: 0 done, 1 the budget cannot be met (the smallest reachable model is saved), 2 bad input.
    """
    hide_loading_bars()
    from shoestring.compression.fit import FitSettings
    from shoestring.compression.fit_target import LLAMA_CPP, SHOESTRING
    from shoestring.compression.gguf_export import check_exportable
    from shoestring.compression.proven_fit import finished, native_bfloat16
    from shoestring.compression.saved_folder import check_writable
    from shoestring.compression.scale_tuning import ScaleTuning
    from shoestring.data.text import default_halves, file_halves

    budget_bytes = parse_bytes(memory, "--memory")
    if context is not None and context < 1:
        raise ValueError(f"--context {context} holds nothing; give the number of tokens, for example 4096")
    folder = out_folder or Path(f"{Path(model.removesuffix('.gguf')).resolve().name}-{memory}")
    target = SHOESTRING if gguf is None else LLAMA_CPP
    if gguf is not None:
        _check_gguf(gguf, context)
    settings = FitSettings(tuning=ScaleTuning(tuning_steps), seed=seed, autocast=native_bfloat16())
    halves = default_halves() if text is None else file_halves(text)
    if not dry_run:
        if resume and (
            proof := finished(folder, model, budget_bytes, context, settings, halves.name, target)
        ):
            print(f"shoestring: {folder} holds this fit already", file=sys.stderr)
            if gguf is not None and not gguf.exists():
                _export_saved(folder, model, gguf)
            _finish(proof, folder, gguf, json)
            return
        check_writable(folder)
    source = _source(model)
    if gguf is not None:
        check_exportable(source.model, _gguf_tokenizer(model, source.tokenizer))
    job = Job(source, halves, budget_bytes, context, settings, target)
    if dry_run:
        _plan(job, json)
    else:
        _fit_and_save(job, folder, gguf, json)


def _check_gguf(path: Path, context: int | None) -> None:
    from shoestring.files import check_place

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
    budget_bytes: int
    context: int | None
    settings: "FitSettings"
    target: "Target"


def _fit_and_save(job: Job, folder: Path, gguf: Path | None, json: bool) -> None:
    from shoestring.compression.fit_report import build_page
    from shoestring.compression.gguf_export import export_gguf
    from shoestring.compression.proven_fit import proven_fit, save_fit

    options: dict[str, Any] = {"context": job.context, "settings": job.settings, "target": job.target}
    with staged_progress() as progress:
        fitted, proof = proven_fit(job.source, job.halves, job.budget_bytes, progress=progress, **options)
        save_fit(fitted, proof, job.source.tokenizer, folder, build_page(proof))
        if gguf is not None:
            tokenizer = _gguf_tokenizer(job.source.name, job.source.tokenizer)
            try:
                export_gguf(fitted.model, tokenizer, gguf)
            except OSError as error:
                reason = error.strerror or error
                raise OSError(f"{gguf} was not written ({reason}); {folder} holds the model") from error
    _finish(proof, folder, gguf, json)


def _plan(job: Job, json: bool) -> None:
    from shoestring.compression.proven_fit import planned_fit

    options: dict[str, Any] = {"context": job.context, "settings": job.settings, "target": job.target}
    with staged_progress() as progress:
        plan = planned_fit(job.source, job.halves, job.budget_bytes, progress=progress, **options)
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
    total = plan["file_bytes"] + (plan["cache_bytes"] or 0)
    if plan["cache_bytes"] is not None:
        lines.append(f"   KV cache   {format_bytes(plan['cache_bytes']):>10}  {_cache_kind(plan)}")
        predicted += next(c["predicted_loss"] for c in plan["caches"] if c["cache"] == plan["cache"])
    lines.append(
        f"{format_bytes(total)} of {format_bytes(plan['budget_bytes'])}; "
        f"predicted divergence {predicted:.4f} nats a token (layer by layer, before correction and tuning)"
    )
    return lines


def _cache_kind(document: dict[str, Any]) -> str:
    """How the cache of a plan or proof stores `context` tokens."""
    cache, tokens = document["cache"], f"{document['context']} tokens"
    if cache is None:
        return f"{tokens} in full"
    if "key_bits" in cache:
        return f"{tokens}, keys in {cache['key_bits']} bits, values in {cache['value_bits']}"
    return f"{tokens} in {cache['bits']} bits, the last {cache['tail_tokens']} or more in full"


def _finish(proof: dict[str, Any], folder: Path, gguf: Path | None, json: bool) -> None:
    if json:
        print_json(proof)
    else:
        console = out()
        console.print(_table(proof))
        if proof["cache_bytes"] is not None:
            divergence = "" if proof["cache_kld"] is None else f"; KLD with it {proof['cache_kld']:.4f}"
            cache = f"KV cache {format_bytes(proof['cache_bytes'])}: {_cache_kind(proof)}{divergence}"
            console.print(cache, soft_wrap=True)
        console.print(f"saved in {folder}; look at {folder / 'report.html'}", soft_wrap=True)
        if gguf is not None:
            tensors, size = format_bytes(proof["exported_bytes"]), format_bytes(gguf.stat().st_size)
            line = f"wrote {gguf}: {tensors} of tensors, {size} with tokenizer and header"
            console.print(line, soft_wrap=True)
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
    """The states side by side: what was measured goes down, so that it fits a narrow terminal."""
    from rich.table import Table

    title = f"{proof['model']} in {format_bytes(proof['budget_bytes'])}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for state in proof["states"]:
        table.add_column(state["name"], justify="right")
    for label, show in (
        ("file", lambda s: format_bytes(s["disk_bytes"])),
        ("peak memory", lambda s: format_bytes(s["peak_bytes"])),
        ("tokens/s", lambda s: "-" if s["tokens_per_second"] is None else f"{s['tokens_per_second']:.1f}"),
        ("perplexity", lambda s: f"{s['quality']['model']['ppl']:.2f}"),
        ("  95 %", lambda s: "{:.2f} to {:.2f}".format(*s["quality"]["model"]["interval"])),
        ("KLD", lambda s: f"{s['quality']['kld']:.4f}"),
    ):
        table.add_row(label, *(show(state) for state in proof["states"]))
    return table
