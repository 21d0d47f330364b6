"""The saved measurements: one JSON file per system, the last comparison that was saved.

A smoke run is never saved: it judges nothing.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from shoestring.yardstick.comparison import Comparison

FOLDER = "results"


def results_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """`folder`, else `$SHOESTRING_RESULTS`, else `results` in the current folder."""
    return Path(folder or os.environ.get("SHOESTRING_RESULTS") or FOLDER)


def save_result(comparison: Comparison, folder: Path) -> Path:
    """Write `<system>.json`; the folder is created.

    Raises: ValueError for a smoke run.
    """
    if not comparison.is_judged:
        raise ValueError(f"{comparison.system}: a smoke run is no result; measure with effort quick or full")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{comparison.system}.json"
    comparison.save(path)
    return path


def load_results(folder: Path, systems: Iterable[str]) -> dict[str, Comparison]:
    """The saved comparisons of these systems, by system; a system without a file is left out.

    Other files in the folder are none of ours and not read. Raises: ValueError naming the file and the field
    that is wrong, or a file that holds another system than its name says.
    """
    found = {}
    for system in systems:
        path = folder / f"{system}.json"
        if not path.is_file():
            continue
        comparison = Comparison.load(path)
        if comparison.system != system:
            raise ValueError(
                f"{path}: holds the system {comparison.system!r}; name it {comparison.system}.json"
            )
        found[system] = comparison
    return found
