"""Every card there is: its experiment runs, answers its claims, and gives a result that can be stored."""

import pytest

from shoestring.systems import all_systems
from shoestring.systems.registry import System
from shoestring.yardstick import Comparison, Effort

SYSTEMS = all_systems()


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS.keys())
def test_smoke_run(system: System):
    comparison = system.measure(Effort.SMOKE, 1)
    assert (comparison.system, comparison.effort, comparison.seed) == (system.card.slug, Effort.SMOKE, 1)
    assert Comparison.from_dict(comparison.to_dict()) == comparison
    rows = {row.metric: row for row in comparison.rows}
    assert len(rows) == len(comparison.rows), "two rows of one metric cannot be told apart"
    for claim in system.card.claims:
        if claim.needs_gpu or any(
            note.startswith(f"{claim.metric}: not measured") for note in comparison.notes
        ):
            continue
        row = rows[claim.metric]
        assert (row.bar, row.bar_on, row.better, row.unit) == (
            claim.bar,
            claim.bar_on,
            claim.better,
            claim.unit,
        )
