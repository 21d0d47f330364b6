"""Sample results: one of every kind that the table and the page must show."""

import math

import pytest

from shoestring.yardstick.comparison import Comparison, Effort, Row
from shoestring.yardstick.environment import Environment
from shoestring.yardstick.report import Entry, PaperClaim

ENVIRONMENT = Environment(
    date="2026-03-04T05:06:07+00:00",
    system="Linux x86_64",
    processor="Sample CPU",
    cores=2,
    threads=2,
    memory_bytes=2**34,
    gpu=None,
    python="3.12.1",
    packages={"numpy": "2.0.0", "torch": "2.13.0"},
)


def sample_row(**changes) -> Row:
    fields = {
        "metric": "peak",
        "kind": "memory",
        "unit": "B",
        "better": "lower",
        "baseline": 8.0,
        "method": 2.0,
    }
    return Row(**fields | changes)


def sample_comparison(*rows: Row, **changes) -> Comparison:
    fields = {
        "system": "sample",
        "method": "new way",
        "baseline": "old way",
        "work": "the same sum",
        "rows": rows or (sample_row(),),
        "effort": Effort.QUICK,
        "seed": 1,
        "environment": ENVIRONMENT,
    }
    return Comparison(**fields | changes)


def sample_entry(slug: str, *rows: Row, claims: tuple[PaperClaim, ...] = (), **changes) -> Entry:
    fields = {
        "slug": slug,
        "title": f"The {slug} method",
        "paper": "Author et al. 2025",
        "year": 2025,
        "saves": ("memory", "time"),
        "authors_code": "owner/code",
        "claims": claims,
        "comparison": sample_comparison(*rows, system=slug) if rows else None,
    }
    return Entry(**fields | changes)


@pytest.fixture
def entries() -> list[Entry]:
    """A scoreboard with every state, a claim for a GPU, an infinite ratio, and markup in the text."""
    fast = sample_row(
        metric="time",
        kind="time",
        unit="s",
        baseline=0.4,
        method=0.1,
        spread=(0.22, 0.29),
        paper_ratio=0.0746,
        bar=0.5,
    )
    lean = sample_row(metric="peak bytes", baseline=2**30, method=2**28, bar=0.2, against="dense counting")
    worse = sample_row(metric="loss", kind="quality", unit="nat", baseline=2.0, method=2.06)
    accuracy = sample_row(
        metric="accuracy",
        kind="quality",
        unit="%",
        better="higher",
        baseline=87.3,
        method=87.1,
        bar=-0.5,
        bar_on="difference",
        spread=(-0.4, 0.1),
    )
    said = PaperClaim(text="counts faster", figure="13.4x", setting="T4, batch 128", metric="time")
    said_lean = PaperClaim(text="needs less", figure="5x", setting="T4", metric="peak bytes")
    gpu = PaperClaim(text="saturates a GPU", figure="40x", setting="A100", metric="GPU time", needs_gpu=True)
    return [
        sample_entry("counting", fast, accuracy, claims=(said, gpu)),
        sample_entry("blocked", lean, worse, sample_row(metric="rise", baseline=0.0), claims=(said_lean,)),
        sample_entry(
            "bare",
            sample_row(metric="x <b>&", method=math.inf),
            title="<script>alert(1)</script> & more",
            claims=(),
        ),
        sample_entry("future", claims=(said,), saves=("storage",), authors_code=None),
    ]
