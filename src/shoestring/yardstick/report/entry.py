"""One line of the scoreboard: a system, what its paper claims, and what was measured."""

import enum
from dataclasses import dataclass

from shoestring.yardstick.comparison import Comparison, Row

COSTS = ("memory", "storage", "compute", "time", "energy")


class State(enum.StrEnum):
    """Where a system stands."""

    HOLDS = "holds"
    SHORT = "falls short"
    MEASURED = "measured, no bar"
    UNMEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class PaperClaim:
    """What the paper says, beside the row (by its metric) that answers it."""

    text: str
    figure: str
    setting: str
    metric: str
    needs_gpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A system on the scoreboard; `comparison` is its last saved measurement, if there is one."""

    slug: str
    title: str
    paper: str
    year: int | None
    saves: tuple[str, ...]
    authors_code: str | None
    claims: tuple[PaperClaim, ...]
    comparison: Comparison | None

    @property
    def state(self) -> State:
        """Where the system stands by its last measurement."""
        if self.comparison is None:
            return State.UNMEASURED
        return {True: State.HOLDS, False: State.SHORT, None: State.MEASURED}[self.comparison.holds]

    @property
    def headline(self) -> Row | None:
        """The first row that says what a cost became, else the first row of all."""
        if self.comparison is None:
            return None
        return self.cost or self.comparison.rows[0]

    @property
    def cost(self) -> Row | None:
        """The first row of a cost that has a ratio; the card's author puts the main one first."""
        return self._first(COSTS)

    @property
    def quality(self) -> Row | None:
        """The first row of quality that has a ratio."""
        return self._first(("quality",))

    @property
    def cost_saved(self) -> float | None:
        """How many times less the main cost became: 4 means a quarter of it."""
        if self.cost is None or not self.cost.ratio:
            return None
        return 1 / self.cost.ratio if self.cost.better == "lower" else float(self.cost.ratio)

    @property
    def quality_lost(self) -> float | None:
        """Share of the main quality metric lost (0.01: one percent worse); negative where it improved."""
        if self.quality is None or self.quality.ratio is None:
            return None
        return float(self.quality.ratio - 1 if self.quality.better == "lower" else 1 - self.quality.ratio)

    def row_of(self, claim: PaperClaim) -> Row | None:
        """The measured row that answers a claim."""
        rows = self.comparison.rows if self.comparison else ()
        return next((row for row in rows if row.metric == claim.metric), None)

    @property
    def short_beside_claims(self) -> tuple[Row, ...]:
        """Rows that fall short and answer no claim, so that nothing that falls short hides."""
        answered = {claim.metric for claim in self.claims}
        return tuple(
            row for row in (self.comparison.short if self.comparison else ()) if row.metric not in answered
        )

    def _first(self, kinds: tuple[str, ...]) -> Row | None:
        rows = self.comparison.rows if self.comparison else ()
        return next((row for row in rows if row.kind in kinds and row.ratio is not None), None)
