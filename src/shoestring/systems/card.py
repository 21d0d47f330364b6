"""A card states one published system: what its paper claims, what builds it, what is demanded of it."""

import importlib
import re
from dataclasses import dataclass

from shoestring.yardstick.comparison import Effort, Number, Row

__all__ = ["Card", "Claim", "Effort"]

SAVINGS = ("memory", "storage", "compute", "time", "communication", "energy", "training data", "engineering")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, and the bar that this project sets itself on its own machine.

    `text` is the claim in a sentence, `figure` the paper's number as printed ("13.4x"), `setting` where it
    was measured. `metric`, `kind`, `unit` and `better` describe the row that answers it (see `Row`);
    `paper_ratio` is the figure as method / baseline, so a 4x speed-up is a time ratio of 0.25. `bar` bounds
    what `bar_on` names; it is None for a claim that is shown but not judged here. `needs_gpu` marks a claim
    whose bar can only be judged on a GPU: its row is left out elsewhere.
    """

    text: str
    figure: str
    setting: str
    metric: str
    kind: str
    unit: str
    better: str
    paper_ratio: Number | None = None
    bar: Number | None = None
    bar_on: str = "ratio"
    needs_gpu: bool = False

    def row(
        self,
        *,
        baseline: Number | None,
        method: Number,
        ratio: Number | None = None,
        spread: tuple[Number, Number] | None = None,
        against: str = "",
    ) -> Row:
        """The row that answers this claim, with the claim's metric, paper's ratio and bar."""
        return Row(
            metric=self.metric,
            kind=self.kind,
            unit=self.unit,
            better=self.better,
            baseline=baseline,
            method=method,
            ratio=ratio,
            spread=spread,
            paper_ratio=self.paper_ratio,
            bar=self.bar,
            bar_on=self.bar_on,
            against=against,
        )


@dataclass(frozen=True, kw_only=True)
class Card:
    """One published system.

    `slug` is its name on the command line; its module is `shoestring.systems.<slug with underscores>`.
    `authors_code` is the authors' repository, "owner/name", or None. `parts` are dotted names of what builds
    it here. Raises: ValueError for a slug that is no slug, an unknown saving, no parts, or claims that answer
    with the same metric.
    """

    slug: str
    title: str
    paper: str
    year: int
    authors_code: str | None
    saves: tuple[str, ...]
    parts: tuple[str, ...]
    claims: tuple[Claim, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.slug):
            raise ValueError(f"slug={self.slug!r} must be lower-case words joined by hyphens, e.g. 'db-llm'")
        for saving in self.saves:
            if saving not in SAVINGS:
                known = ", ".join(map(repr, SAVINGS))
                raise ValueError(f"{self.slug}: saves {saving!r}; known savings are {known}")
        for name in ("saves", "parts", "claims"):
            if not getattr(self, name):
                raise ValueError(f"{self.slug}: {name} is empty")
        metrics = [claim.metric for claim in self.claims]
        if double := {metric for metric in metrics if metrics.count(metric) > 1}:
            raise ValueError(
                f"{self.slug}: two claims answer with the metric {min(double)!r}; name them apart"
            )

    def claim(self, metric: str) -> Claim:
        """The claim that a row of this metric answers. Raises: ValueError listing the metrics there are."""
        for claim in self.claims:
            if claim.metric == metric:
                return claim
        known = ", ".join(repr(claim.metric) for claim in self.claims)
        raise ValueError(f"{self.slug}: no claim has the metric {metric!r}; there are {known}")

    def resolve_parts(self) -> dict[str, object]:
        """Import every part. Raises: ValueError naming the card and the part that does not exist."""
        return {name: _resolve(self.slug, name) for name in self.parts}


def _resolve(slug: str, name: str) -> object:
    """The module, or the attribute of a module, that a dotted name stands for."""
    pieces = name.split(".")
    for split in range(len(pieces), 0, -1):
        module_name = ".".join(pieces[:split])
        try:
            found: object = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the module is there, but something that it imports is not
            continue
        for attribute in pieces[split:]:
            if not hasattr(found, attribute):
                raise ValueError(f"{slug}: part {name!r} does not exist ({module_name} has no {attribute})")
            found = getattr(found, attribute)
        return found
    raise ValueError(f"{slug}: part {name!r} does not exist (no module {pieces[0]})")
