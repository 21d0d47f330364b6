"""Comparisons: verdicts by hand, JSON round trip, and what the loader refuses."""

import dataclasses
import json
import math

import hypothesis.strategies as st
import jsonschema
import numpy as np
import pytest
from hypothesis import given

from shoestring.yardstick import schema
from shoestring.yardstick.comparison import Comparison, Effort, Row
from shoestring.yardstick.environment import Environment

ENVIRONMENT = Environment(
    date="2026-01-02T03:04:05+00:00",
    system="Linux x86_64",
    processor="Some CPU",
    cores=2,
    threads=2,
    memory_bytes=2**34,
    gpu=None,
    python="3.12.1",
    packages={"torch": "2.13.0"},
)


def row(**changes) -> Row:
    fields = {
        "metric": "peak",
        "kind": "memory",
        "unit": "B",
        "better": "lower",
        "baseline": 8.0,
        "method": 2.0,
    }
    return Row(**fields | changes)


def comparison(*rows: Row, **changes) -> Comparison:
    fields = {
        "system": "sample",
        "method": "new way",
        "baseline": "old way",
        "work": "the same sum",
        "rows": rows or (row(),),
        "effort": Effort.QUICK,
        "seed": 1,
        "environment": ENVIRONMENT,
    }
    return Comparison(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, None),
        ({"bar": 0.25}, True),
        ({"bar": 0.2499}, False),
        ({"better": "higher", "bar": 0.25}, True),
        ({"better": "higher", "bar": 0.2501}, False),
        ({"bar": -6.0, "bar_on": "difference"}, True),
        ({"bar": -6.1, "bar_on": "difference"}, False),
        ({"bar": 2.0, "bar_on": "value"}, True),
        ({"bar": 1.9, "bar_on": "value"}, False),
        ({"bar": 0.3, "ratio": 0.31}, False),  # a paired estimate overrides 2 / 8
        ({"method": math.nan, "bar": 1e9}, False),
        ({"method": math.inf, "bar": 1e9}, False),
        ({"method": -math.inf, "bar": 1e9}, True),
        ({"baseline": None, "bar": 2.5, "bar_on": "value"}, True),
    ],
)
def test_verdict_of_a_row(changes, holds):
    assert row(**changes).holds is holds


def test_ratio_against_nothing():
    assert row(baseline=0.0, method=0.0).ratio == 1.0
    assert row(baseline=0.0, method=3.0).ratio == math.inf
    assert row(baseline=0.0, method=-3.0).ratio == -math.inf
    assert math.isnan(row(baseline=0.0, method=math.nan).ratio)
    assert row(baseline=None).ratio is None


def test_overall_verdict():
    good, bad, bare = row(bar=0.5), row(metric="loss", bar=0.1), row(metric="other")
    assert comparison(bare).holds is None
    assert comparison(good, bare).holds is True
    assert comparison(good, bad, bare).holds is False
    assert comparison(good, bad, bare).short == (bad,)


def test_a_smoke_run_judges_nothing():
    smoke = comparison(row(bar=0.1), effort=Effort.SMOKE)
    assert smoke.holds is None
    assert smoke.short == ()
    assert smoke.to_dict()["rows"][0]["holds"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"better": "smaller"}, "better='smaller'; use one of 'lower', 'higher'"),
        ({"kind": "speed"}, "kind='speed'"),
        ({"bar_on": "median"}, "bar_on='median'"),
        ({"spread": (2.0, 1.0)}, r"spread=.*\(low, high\)"),
        ({"baseline": None, "bar": 0.5}, "bar on the ratio needs a baseline"),
        ({"baseline": None, "bar": 0.5, "bar_on": "difference"}, "bar on the difference needs a baseline"),
    ],
)
def test_bad_rows(changes, message):
    with pytest.raises(ValueError, match=message):
        row(**changes)


def test_bad_comparisons():
    with pytest.raises(ValueError, match="at least one row"):
        comparison(rows=())


numbers = st.floats(width=64)
maybe = st.none() | numbers
spreads = st.none() | st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)).map(
    lambda pair: tuple(sorted(pair))
)
rows = st.builds(
    Row,
    metric=st.text(),
    kind=st.sampled_from(["memory", "quality", "time"]),
    unit=st.sampled_from(["B", "s", "", "nan", "µs"]),
    better=st.sampled_from(["lower", "higher"]),
    baseline=numbers,
    method=numbers,
    ratio=maybe,
    spread=spreads,
    paper_ratio=maybe,
    bar=maybe,
    bar_on=st.sampled_from(["ratio", "difference", "value"]),
    against=st.sampled_from(["", "inf"]),
)


@given(
    st.lists(rows, min_size=1, max_size=4),
    st.sampled_from(list(Effort)),
    st.lists(st.text(), max_size=2),
    maybe,
)
def test_round_trip(rows, effort, notes, seconds):
    before = comparison(*rows, effort=effort, notes=tuple(notes), seconds=seconds)
    text = schema.dumps(before.to_dict())
    after = Comparison.from_dict(schema.loads(text))
    assert repr(after) == repr(before), "repr, because NaN is not equal to itself"


def test_save_and_load(tmp_path):
    before = comparison(row(bar=0.5, spread=(0.2, 0.3), paper_ratio=0.1), notes=("ran the plain path",))
    before.save(tmp_path / "sample.json")
    assert Comparison.load(tmp_path / "sample.json") == before
    json.loads((tmp_path / "sample.json").read_text(), parse_constant=pytest.fail)


def test_whole_numbers_are_good_figures():
    stored = comparison(row(method=2, baseline=np.float64(5), bar=1)).to_dict()
    assert json.loads(schema.dumps(stored))["rows"][0]["ratio"] == 0.4


def test_schema_is_real_json_schema():
    jsonschema.Draft202012Validator.check_schema(schema.COMPARISON)
    document = comparison(row(method=math.inf, bar=1.0, spread=(0.0, math.inf))).to_dict()
    jsonschema.validate(document, schema.COMPARISON)


def edited(place: list, value) -> dict:
    document = comparison(row(bar=0.5, spread=(0.1, 0.4))).to_dict()
    inner = document
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return document


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["schema"], "shoestring/comparison/0", 'schema is "shoestring/comparison/0"; it must be one of'),
        (["rows"], [], r"rows has 0 items; it must have at least 1"),
        (["rows", 0, "method"], "many", r'rows\[0\].method is "many"; it must be number or one of'),
        (["rows", 0, "method"], True, r"rows\[0\].method is true"),
        (["rows", 0, "better"], "more", r'rows\[0\].better is "more"'),
        (["rows", 0, "spread"], [1.0], r"rows\[0\].spread has 1 items; it must have 2"),
        (["rows", 0, "extra"], 1, r"rows\[0\] has an unknown field 'extra'"),
        (["rows", 0, "holds"], False, r"rows\[0\].holds is False, but the figures of 'peak' say otherwise"),
        (["holds"], None, "holds is None, but the rows say True"),
        (["environment", "cores"], -1, "environment.cores is -1; it must be at least 0"),
        (["environment", "packages"], {"torch": 2}, "environment.packages.torch is 2; it must be string"),
        (["effort"], "long", 'effort is "long"'),
    ],
)
def test_loader_names_what_is_wrong(place, value, message):
    with pytest.raises(ValueError, match=message):
        Comparison.from_dict(edited(place, value))


def test_loader_names_what_is_missing(tmp_path):
    document = comparison().to_dict()
    del document["seed"], document["work"]
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"cut\.json: the document lacks work, seed"):
        Comparison.load(path)
    path.write_text('{"schema": NaN}')
    with pytest.raises(ValueError, match="NaN is not JSON"):
        Comparison.load(path)
    path.write_text('{"schema": ')
    with pytest.raises(ValueError, match=r"cut\.json: "):
        Comparison.load(path)
    path.write_text("3")
    with pytest.raises(ValueError, match="the document is 3; it must be object"):
        Comparison.load(path)


def test_schema_lists_the_fields_that_there_are():
    """The schema is written by hand: a field added to a dataclass must be added to it too."""
    names = {f.name for f in dataclasses.fields(Comparison)} | {"schema", "holds"}
    assert set(schema.COMPARISON["properties"]) == names
    assert set(schema.ROW["properties"]) == {f.name for f in dataclasses.fields(Row)} | {"holds"}
    assert set(schema.ENVIRONMENT["properties"]) == {f.name for f in dataclasses.fields(Environment)}


def test_environment_describes_this_process():
    import torch

    here = Environment.here(packages=["hypothesis"])
    assert here.threads == torch.get_num_threads()
    assert here.packages["torch"] == torch.__version__
    assert set(here.packages) == {"hypothesis", "numpy", "shoestring", "torch"}
    assert here.cores >= 1
    assert here.memory_bytes > 2**28
    with pytest.raises(ValueError, match="'no-such-package' is not installed"):
        Environment.here(packages=["no-such-package"])
