"""A comparison: method against baseline on the same work. The only form in which a result is given."""

import enum
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoestring.files import write_text
from shoestring.yardstick import schema
from shoestring.yardstick.environment import Environment

BETTER = ("lower", "higher")
BAR_ON = ("ratio", "difference", "value")
KINDS = ("memory", "storage", "compute", "time", "energy", "quality", "other")

Number = float | int


class Effort(enum.StrEnum):
    """How long an experiment may take, and so what its figures are worth."""

    SMOKE = "smoke"
    """Under 10 s: every part of the path runs; no bar is judged."""
    QUICK = "quick"
    """Under 3 minutes on two cores: the bars are judged."""
    FULL = "full"
    """As long as the experiment needs, which it says beforehand."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of a comparison.

    `kind` says what the figure is a measure of; `unit` follows `quantities.format_quantity` ("B", "s",
    "FLOP", "%", …). `ratio` is method / baseline unless a better estimate is given (the median of paired
    ratios). `bar` bounds the ratio, the difference method - baseline, or the method's own value, as `bar_on`
    says: from above when lower is better, from below when higher is. `spread` is the 95 % interval of that
    same quantity. `against` names the baseline of this row where it is not that of the whole comparison.

    A row without a baseline has no ratio; then a bar can only be on its value.
    Raises: ValueError for an unknown `better`, `kind` or `bar_on`, a spread upside down, a bar on nothing.
    """

    metric: str
    kind: str
    unit: str
    better: str
    baseline: Number | None
    method: Number
    ratio: Number | None = None
    spread: tuple[Number, Number] | None = None
    paper_ratio: Number | None = None
    bar: Number | None = None
    bar_on: str = "ratio"
    against: str = ""

    def __post_init__(self) -> None:
        for name, allowed in (("better", BETTER), ("kind", KINDS), ("bar_on", BAR_ON)):
            if getattr(self, name) not in allowed:
                choices = ", ".join(map(repr, allowed))
                raise ValueError(f"{self.metric}: {name}={getattr(self, name)!r}; use one of {choices}")
        for name in ("baseline", "method", "ratio", "paper_ratio", "bar"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        if self.spread is not None:
            object.__setattr__(self, "spread", (float(self.spread[0]), float(self.spread[1])))
        if self.ratio is None and self.baseline is not None:
            object.__setattr__(self, "ratio", _divide(self.method, self.baseline))
        if self.spread is not None and self.spread[0] > self.spread[1]:
            raise ValueError(f"{self.metric}: spread={self.spread} must be (low, high)")
        if self.bar is not None and self.bar_on != "value" and self.judged is None:
            raise ValueError(
                f"{self.metric}: a bar on the {self.bar_on} needs a baseline; give one, or bar_on='value'"
            )

    @property
    def difference(self) -> Number | None:
        """method - baseline."""
        return None if self.baseline is None else self.method - self.baseline

    @property
    def judged(self) -> Number | None:
        """The quantity that the bar bounds."""
        return {"ratio": self.ratio, "difference": self.difference, "value": self.method}[self.bar_on]

    @property
    def holds(self) -> bool | None:
        """Whether the bar is met; None without a bar. What is not a number never holds."""
        if self.bar is None or self.judged is None:
            return None
        return self.judged <= self.bar if self.better == "lower" else self.judged >= self.bar


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Method and baseline on the same work, with what it takes to repeat the measurement.

    `work` says in a phrase what both were made to do; `notes` are what a reader must know, the fallbacks
    taken among them. `seconds` is what the whole experiment took.
    """

    system: str
    method: str
    baseline: str
    work: str
    rows: tuple[Row, ...]
    effort: Effort
    seed: int
    environment: Environment = field(default_factory=Environment.here)
    notes: tuple[str, ...] = ()
    seconds: Number | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError(f"{self.system}: a comparison needs at least one row")

    @property
    def is_judged(self) -> bool:
        """Bars are judged from effort `quick` on: a smoke run is too small to say anything."""
        return self.effort is not Effort.SMOKE

    def verdict(self, row: Row) -> bool | None:
        """Whether a row's bar holds; None where there is none, or where the effort judges nothing."""
        return row.holds if self.is_judged else None

    @property
    def holds(self) -> bool | None:
        """Whether every bar holds; None when there is no bar or the effort judges nothing."""
        verdicts = [v for row in self.rows if (v := self.verdict(row)) is not None]
        return all(verdicts) if verdicts else None

    @property
    def short(self) -> tuple[Row, ...]:
        """The rows that fall short of their bar."""
        return tuple(row for row in self.rows if self.verdict(row) is False)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `schema.COMPARISON`; what is not finite becomes "nan", "inf" or "-inf"."""
        rows = [_plain(row) | {"holds": self.verdict(row)} for row in self.rows]
        document = _plain(self) | {"schema": schema.COMPARISON_ID, "rows": rows, "holds": self.holds}
        return schema.encode_numbers(document)

    @classmethod
    def from_dict(cls, document: Any) -> "Comparison":
        """The comparison that `to_dict` wrote.

        Raises: ValueError naming the field, where the document does not follow the schema or where its
        `holds` is not what its own figures say.
        """
        schema.validate(document, schema.COMPARISON)
        fields = schema.decode_numbers(dict(document))
        stated, stated_rows = fields.pop("holds"), [row.pop("holds") for row in fields["rows"]]
        del fields["schema"]
        fields["rows"] = tuple(
            Row(**row | {"spread": tuple(row["spread"]) if row["spread"] else None}) for row in fields["rows"]
        )
        fields["environment"] = Environment(**fields["environment"])
        comparison = cls(**fields | {"effort": Effort(fields["effort"]), "notes": tuple(fields["notes"])})
        for number, (row, holds) in enumerate(zip(comparison.rows, stated_rows, strict=True)):
            if comparison.verdict(row) is not holds:
                raise ValueError(
                    f"rows[{number}].holds is {holds}, but the figures of {row.metric!r} say otherwise"
                )
        if comparison.holds is not stated:
            raise ValueError(f"holds is {stated}, but the rows say {comparison.holds}")
        return comparison

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON document, whole or not at all."""
        write_text(path, schema.dumps(self.to_dict()) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Comparison":
        """Read what `save` wrote.

        Raises: FileNotFoundError; ValueError naming the file and the field that is wrong.
        """
        try:
            return cls.from_dict(schema.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error


def _divide(method: Number, baseline: Number) -> float:
    """IEEE division, except that nothing against nothing is parity."""
    if baseline == 0:
        if method == 0:
            return 1.0
        return math.nan if math.isnan(method) else math.copysign(math.inf, method)
    return method / baseline


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as lists."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
