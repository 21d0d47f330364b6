"""Two systems for the command line to find, in a folder of their own."""

import sys
import textwrap

import pytest

from shoestring import systems

MODULE = """
    from shoestring.notices import notice_fallback
    from shoestring.systems import Card, Claim
    from shoestring.yardstick import Comparison, Row

    claim = Claim(text="does it in less", figure="4x", setting="one GPU", metric="peak",
                  kind="memory", unit="B", better="lower", paper_ratio=0.25, bar={bar})
    card = Card(slug="{slug}", title="The {slug} method", paper="Nobody 2025", year=2025, authors_code=None,
                saves=("{saves}", "time"), parts=("shoestring.yardstick.Row",), claims=(claim,))

    def measure(effort, seed):
        {body}
        return Comparison(system="{slug}", method="new way", baseline="old way", work="the same sum",
                          rows=(claim.row(baseline=1000 + seed, method=300),), effort=effort, seed=seed)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Adds modules to the storey of systems; the results go to a folder of the test."""
    modules = tmp_path / "modules"
    modules.mkdir()
    monkeypatch.setattr(systems, "__path__", [*systems.__path__, str(modules)])
    monkeypatch.setenv("SHOESTRING_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SHOESTRING_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def add(slug: str, *, bar: float = 0.5, saves: str = "memory", body: str = "pass") -> None:
        text = textwrap.dedent(MODULE).format(slug=slug, bar=bar, saves=saves, body=body)
        (modules / f"{slug.replace('-', '_')}.py").write_text(text)

    yield add
    for path in modules.glob("*.py"):
        sys.modules.pop(f"{systems.__name__}.{path.stem}", None)


@pytest.fixture
def lean(folder):
    """zz-lean holds its bar, zz-fat does not."""
    folder("zz-lean")
    folder("zz-fat", bar=0.1, saves="energy")
