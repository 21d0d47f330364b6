"""All options give one product; infeasible ones are never chosen; what was measured is chosen again."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from shoestring.errors import NoCompiler
from shoestring.kernels import linear_dispatch, linear_options
from shoestring.kernels.costs import Cost
from shoestring.kernels.grouped_linear import Activations
from shoestring.kernels.linear_dispatch import DispatchedLinear, choose, feasible, ranked
from shoestring.kernels.linear_options import OPTIONS, LinearOption, LinearProblem, naive_product
from shoestring.kernels.tuning import TuningTable
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint

FORM = GroupedAffine(4, 32, ZeroPoint.INTEGER)


@pytest.fixture(autouse=True)
def own_table(tmp_path, monkeypatch):
    monkeypatch.setattr(linear_dispatch, "tuning_table", lambda: TuningTable(tmp_path / "table.json"))


def stored(form, rows, groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cols = groups * form.group_size
    codes = torch.randint(form.levels, (rows, cols), generator=generator, dtype=torch.uint8)
    scale = torch.rand(rows, groups, generator=generator) + 0.1
    shift = torch.randint(form.levels, (rows, groups), generator=generator).float()
    return form.store(codes, form.represent(scale, shift)), cols


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bits=st.just(4), group_size=st.sampled_from([3, 32]), rows=st.sampled_from([1, 17, 40]),
    groups=st.integers(1, 3), zero=st.sampled_from(ZeroPoint), tokens=st.sampled_from([1, 2, 7, 16, 65]),
)  # fmt: skip
def test_every_feasible_option_gives_the_product(bits, group_size, rows, groups, zero, tokens):
    form = GroupedAffine(bits, group_size, zero)
    matrix, cols = stored(form, rows, groups)
    linear = DispatchedLinear(form, matrix, cols)
    x = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(1))
    expected = naive_product(form, matrix, cols, x)
    size = x.abs() @ form.dequantise(matrix, cols).abs().T + 1
    for option in feasible(linear.problem(tokens)):
        found = linear.product(option)(x)
        # What is subtracted again (zero points times sums) is part of the rounding.
        assert ((found - expected).abs() <= 1e-4 * size).all(), option.name
    assert ((linear(x) - expected).abs() <= 1e-4 * size).all()


def test_rounded_inputs_only_where_they_may_be():
    names = {o.name for o in feasible(LinearProblem(FORM, 8, 32, 1))}
    assert names == {"planes", "stream", "panel"}
    allowed = LinearProblem(FORM, 8, 32, 40, Activations.INT8)
    assert {o.name for o in feasible(allowed)} == {"planes", "planes, int8 inputs", "panel"}


def test_without_a_compiler_torch_remains(monkeypatch):
    def none():
        raise NoCompiler("no C compiler found")

    monkeypatch.setattr(linear_options, "compiler_path", none)
    assert [o.name for o in ranked(LinearProblem(FORM, 8, 32, 1, Activations.INT8))] == ["panel"]


def option(name, number, cost, able=True, product=None):
    return LinearOption(
        name, number, lambda p: None if able else f"{name} cannot", lambda p: cost,
        lambda form, matrix, cols: product or (lambda x: x),
    )  # fmt: skip


def test_costs_are_averaged_after_each_is_normalised():
    problem = LinearProblem(FORM, 8, 32, 1)
    few_bytes, few_flops, both = (
        option("bytes", 91, Cost(1000, 10)),
        option("flops", 92, Cost(100, 40)),
        option("both", 93, Cost(150, 15)),
    )
    assert [o.name for o in ranked(problem, [few_bytes, few_flops, both])] == ["both", "flops", "bytes"]


def test_infeasible_options_are_never_chosen_even_if_a_table_names_them():
    good, bad = option("good", 91, Cost(9, 9)), option("bad", 92, Cost(1, 1), able=False)
    problem = LinearProblem(FORM, 8, 32, 4)
    assert choose(problem, [bad, good]) is good
    matrix, cols = stored(FORM, 8, 1)
    user = DispatchedLinear(FORM, matrix, cols, options=[option("bad", 92, Cost(1, 1)), good])
    user.tune(4, candidates=1)
    assert choose(problem, [bad, good]) is good
    with pytest.raises(ValueError, match="no kernel for .*bad: bad cannot"):
        choose(problem, [bad])


def test_what_was_measured_is_chosen_again_also_for_fewer_rows(monkeypatch):
    one, other = option("one", 91, Cost(1, 1)), option("other", 92, Cost(2, 2))
    matrix, cols = stored(FORM, 8, 1)
    linear = DispatchedLinear(FORM, matrix, cols, options=[one, other])
    monkeypatch.setattr(
        "shoestring.kernels.linear_dispatch.measure_fastest",
        lambda works, repeats: {"one": 2.0, "other": 1.0},
    )
    assert choose(linear.problem(8), linear.options) is one
    assert linear.tune(8, repeats=1) == {"one": 2.0, "other": 1.0}
    # The table is read anew each time, as another process would.
    for rows, expected in ((1, other), (5, other), (8, other), (9, one)):
        assert choose(linear.problem(rows), linear.options) is expected, rows
    monkeypatch.setattr(
        "shoestring.kernels.linear_dispatch.measure_fastest",
        lambda works, repeats: {"one": 1.0, "other": 2.0},
    )
    linear.tune(2)
    assert choose(linear.problem(1), linear.options) is one
    assert choose(linear.problem(3), linear.options) is other
    other_shape = LinearProblem(FORM, 9, 32, 1)
    assert choose(other_shape, linear.options) is one


def test_real_measurements_name_real_options():
    matrix, cols = stored(FORM, 16, 2)
    linear = DispatchedLinear(FORM, matrix, cols)
    seconds = linear.tune(2, candidates=3, repeats=1)
    assert len(seconds) == 3
    assert choose(linear.problem(2)).name in seconds
    assert len({o.number for o in OPTIONS}) == len(OPTIONS)
    with pytest.raises(ValueError, match="candidates=0"):
        linear.tune(2, candidates=0)
