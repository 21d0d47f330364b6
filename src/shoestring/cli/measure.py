"""`shoestring measure`: runs cards, shows method against baseline."""

from typing import TYPE_CHECKING, Annotated

import typer

from shoestring.cli.console import Exit, ResultsFolder, errors, out, print_json, working

if TYPE_CHECKING:
    from shoestring.systems import System
    from shoestring.yardstick import Comparison, Effort


def measure(
    slugs: Annotated[
        list[str], typer.Argument(metavar="SLUG", help="Systems, as `shoestring systems` names them.")
    ],
    effort: Annotated[
        str,
        typer.Option(
            metavar="smoke|quick|full",
            help="smoke: seconds, runs every part and judges nothing; quick: under 3 minutes each, judges "
            "the bars; full: as long as it needs.",
        ),
    ] = "quick",
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON array of comparisons on stdout.")
    ] = False,
    save: Annotated[bool, typer.Option("--save", help="Keep each result as RESULTS/SLUG.json.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a bar falls short.")] = False,
    results: ResultsFolder = None,
) -> None:
    """Measure systems here: method against baseline.

    Both do the same work in the same process; times are taken in turns. Bars are what this project demands
    of itself, on ratios, never on absolute times.

    \b
    shoestring measure tensorbleu                    a table and a plot
    shoestring measure tensorbleu pychop --save      keep the results for the scoreboard
    shoestring measure pychop --check                for CI: exit 1 where a bar falls short
    shoestring measure pychop --effort smoke --json  a quick look, for a program
    """
    from shoestring.systems import find_system
    from shoestring.yardstick.results import results_folder, save_result

    chosen = _effort(
        effort, judged=[name for name, wanted in (("--check", check), ("--save", save)) if wanted]
    )
    systems = [find_system(slug) for slug in dict.fromkeys(slugs)]  # all are known before the first one runs
    folder = results_folder(results)
    comparisons: list[Comparison] = []
    for system in systems:
        comparison = _run(system, chosen, seed)
        comparisons.append(comparison)
        if not json:
            _show(comparison, is_first=len(comparisons) == 1)
        if save:
            errors().print(f"saved {save_result(comparison, folder)}", soft_wrap=True)
    if json:
        print_json([comparison.to_dict() for comparison in comparisons])
    if check:
        raise typer.Exit(_verdict(comparisons))


def _effort(name: str, judged: list[str]) -> "Effort":
    from shoestring.yardstick import Effort

    if name not in list(Effort):
        raise ValueError(f"--effort {name!r} is not known; use {', '.join(Effort)}")
    if judged and name == Effort.SMOKE:
        raise ValueError(
            f"{judged[0]} needs judged bars, which a smoke run does not have; use --effort quick or full"
        )
    return Effort(name)


def _run(system: "System", effort: "Effort", seed: int) -> "Comparison":
    import dataclasses
    import time

    from shoestring.notices import record_fallbacks

    with working(f"measuring {system.card.slug} ({effort})"), record_fallbacks() as fallbacks:
        start = time.perf_counter()
        comparison = system.measure(effort, seed)
        seconds = time.perf_counter() - start
    new = tuple(f"fallback: {line}" for line in fallbacks if f"fallback: {line}" not in comparison.notes)
    return dataclasses.replace(comparison, seconds=seconds, notes=comparison.notes + new)


def _show(comparison: "Comparison", *, is_first: bool) -> None:
    from shoestring.yardstick.terminal import render

    console = out()
    if not is_first:
        console.rule(style="dim")
    console.print(render(comparison, console.width))


def _verdict(comparisons: "list[Comparison]") -> Exit:
    short = [comparison for comparison in comparisons if comparison.holds is False]
    for comparison in short:
        names = ", ".join(row.metric for row in comparison.short)
        errors().print(f"shoestring: {comparison.system} falls short of its bar: {names}", soft_wrap=True)
    for comparison in comparisons:
        if comparison.holds is None:
            errors().print(f"shoestring: {comparison.system} has no bar to check", soft_wrap=True)
    return Exit.SHORT if short else Exit.DONE
