"""`shoestring report`: the scoreboard as one self-contained HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from shoestring.cli.console import ResultsFolder, errors


def report(
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The page to write; it needs nothing beside it.")
    ] = Path("scoreboard.html"),
    results: ResultsFolder = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write the scoreboard as one HTML page.

    Every system, what its paper claims beside what was measured here; nothing is loaded from the network.

    \b
    shoestring measure tensorbleu pychop --save    measure first
    shoestring report                              then write scoreboard.html
    shoestring report --out docs/board.html --open
    """
    from shoestring.files import write_text
    from shoestring.systems import all_cards
    from shoestring.systems.scoreboard import scoreboard
    from shoestring.yardstick.report import build_page
    from shoestring.yardstick.results import load_results, results_folder

    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the folder {out.parent} does not exist; create it first")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it, e.g. {out / 'scoreboard.html'}")
    found = all_cards()
    entries = scoreboard(found, load_results(results_folder(results), found))
    write_text(out, build_page(entries))
    measured = sum(entry.comparison is not None for entry in entries)
    errors().print(f"wrote {out} ({len(entries)} systems, {measured} measured)", soft_wrap=True)
    if show:
        typer.launch(str(out.resolve()))
