"""`shoestring systems`: what there is, and how it last measured."""

from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoestring.cli.console import ResultsFolder, out, print_json

if TYPE_CHECKING:
    from shoestring.yardstick.report import Entry


def systems(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array of systems on stdout.")] = False,
    results: ResultsFolder = None,
) -> None:
    """List the systems, grouped by what they save.

    With each stands its last saved measurement, if there is one.

    \b
    shoestring systems                        the list
    shoestring systems --json | jq '.[].slug'  for a program
    """
    from shoestring.systems import all_cards
    from shoestring.systems.scoreboard import scoreboard
    from shoestring.yardstick.results import load_results, results_folder

    found = all_cards()
    entries = scoreboard(found, load_results(results_folder(results), found))
    if json:
        print_json([_document(entry) for entry in entries])
    else:
        _show(entries)


def _show(entries: "list[Entry]") -> None:
    from rich.table import Table
    from rich.text import Text

    console = out()
    styles = {"holds": "green", "falls short": "bold red"}
    longest = max((len(entry.slug) for entry in entries), default=0)
    for saving, group in groupby(entries, key=lambda entry: entry.saves[0]):
        console.print(Text(f"saves {saving}", style="bold"))
        grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
        grid.add_column(no_wrap=True, min_width=longest + 2)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        for entry in group:
            title = Text(entry.title)
            title.append(f" ({entry.year})", style="dim")
            for line in (_others(entry), _last(entry)):
                if line:
                    title.append(f"\n{line}", style="dim")
            state = Text(entry.state, style=styles.get(entry.state, "dim"))
            grid.add_row(Text(f"  {entry.slug}", style="cyan"), title, state)
        console.print(grid)
        console.print()
    count = f"{len(entries)} system" + ("" if len(entries) == 1 else "s")
    console.print(Text(f"{count}. Measure one with: shoestring measure SLUG", style="dim"))


def _others(entry: "Entry") -> str:
    return f"also saves {', '.join(entry.saves[1:])}" if len(entry.saves) > 1 else ""


def _last(entry: "Entry") -> str:
    from shoestring.yardstick.quantities import format_quantity, format_ratio

    row, comparison = entry.headline, entry.comparison
    if row is None or comparison is None:
        return ""
    value = format_ratio(row.ratio) if row.ratio is not None else format_quantity(row.method, row.unit)
    return f"{comparison.environment.date[:10]}, {comparison.effort}: {row.metric} {value}"


def _document(entry: "Entry") -> dict[str, Any]:
    return {
        "slug": entry.slug,
        "title": entry.title,
        "paper": entry.paper,
        "year": entry.year,
        "saves": list(entry.saves),
        "authors_code": entry.authors_code,
        "state": entry.state.value,
        "measured": entry.comparison.to_dict() if entry.comparison else None,
    }
