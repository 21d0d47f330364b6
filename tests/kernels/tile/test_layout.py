import functools
import json
import math
import operator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels.tile.strategies import PRIMITIVES, layouts, scrambled_layouts

from shoestring.errors import LayoutError
from shoestring.kernels.tile import layout as layout_module
from shoestring.kernels.tile.layout import (
    RegisterLayout,
    auto_local_spatial,
    column_local,
    column_spatial,
    local,
    replicate,
    spatial,
)
from shoestring.kernels.tile.naive_layout import naive_product, naive_table


def table_of(layout):
    table = layout.index_table
    return {place: tuple(table[place].tolist()) for place in np.ndindex(*table.shape[:2])}


def test_the_example_of_the_paper():
    layout = RegisterLayout((4, 6), (2, 2, 3, 2), (0, 2), (3, 1))
    for i, j in np.ndindex(4, 6):
        assert layout.threads_of((i, j)) == ((i // 2) * 3 + j // 2,)
        assert layout.slot_of((i, j)) == (j % 2) * 2 + i % 2


def test_the_accumulator_fragment():
    layout = local(2, 1).spatial(8, 4).local(1, 2)
    assert (layout.mode_shape, layout.spatial_modes, layout.local_modes) == ((2, 8, 4, 2), (1, 2), (0, 3))
    assert layout.index_of(5, 3) == (9, 3)
    assert layout.threads_of((9, 3)) == (5,)
    assert layout.slot_of((9, 3)) == 3


@given(scrambled_layouts())
def test_tables_equal_the_definition_and_one_another(layout):
    assert table_of(layout) == naive_table(layout)
    for index in np.ndindex(*layout.shape):
        holders = layout.threads_of(index)
        assert len(set(holders)) == layout.replicas
        assert {layout.index_of(t, layout.slot_of(index)) for t in holders} == {index}
        assert layout.writers[holders[0]]
        assert layout.writers[list(holders)].sum() == 1
    assert layout.threads * layout.local_size == layout.size * layout.replicas


@given(scrambled_layouts(copies=False))
def test_without_replication_the_map_is_a_bijection(layout):
    assert sorted(layout.flat_table.reshape(-1).tolist()) == list(range(layout.size))


@given(layouts(copies=True, factors=2), layouts(copies=True, factors=1))
def test_product_equals_its_formula(f, g):
    assert table_of(f * g) == naive_product(f, g)


@given(*[layouts(copies=True, factors=1)] * 3)
def test_product_is_associative(f, g, h):
    assert (f * g) * h == f * (g * h)


def test_product_does_not_commute_and_pads_the_shorter_shape():
    assert local(2).spatial(3) != spatial(3).local(2)
    assert local(2, 3) * spatial(4) == local(2, 3) * spatial(1, 4)


@given(scrambled_layouts(), scrambled_layouts())
def test_division_undoes_the_product_on_both_sides(f, g):
    rank = max(f.rank, g.rank)
    assert (f * g) / g == f.padded(rank)
    assert (f * g).left_divide(f) == g.padded(rank)


@given(scrambled_layouts(), scrambled_layouts())
def test_a_quotient_multiplies_back_or_both_layouts_are_named(h, g):
    for divide, product in (
        (lambda: h / g, lambda q: q * g),
        (lambda: h.left_divide(g), lambda q: g * q),
    ):
        try:
            quotient = divide()
        except LayoutError as error:
            message = str(error)
        else:
            assert product(quotient) == h
            continue
        assert repr(h) in message
        assert repr(g) in message


def test_divisions_that_cut_a_mode():
    assert local(2, 4) / local(1, 2) == local(2, 2)
    assert local(2, 4).left_divide(local(2, 2)) == local(1, 2)
    assert spatial(8).local(6) / local(3) == spatial(8).local(2)
    for h, g in (
        (local(2, 4), local(2, 2)),  # the slots of the divisor are not the last ones
        (local(4), spatial(2)),
        (local(4), local(3)),
        (replicate(6).local(2), replicate(3).local(2)),  # -6 is one digit: it is not -2, -3
        (local(4), local(2, 2)),
    ):
        with pytest.raises(LayoutError, match="divisible"):
            h / g


@given(layouts(rank=3, copies=True))
def test_quotients_exist_wherever_brute_force_finds_one(h):
    divisor = h.left_divide(local(1))
    assert divisor == h
    for f in (local(2, 1, 1), spatial(1, 2, 1), column_local(1, 2, 2)):
        assert (f * h) / h == f
        assert (h * f).left_divide(h) == f


@given(scrambled_layouts(), st.data())
def test_permute_squeeze_and_unsqueeze_move_indices(layout, data):
    dims = data.draw(st.permutations(range(layout.rank)))
    assert np.array_equal(layout.permute(dims).index_table, layout.index_table[:, :, dims])
    assert layout.permute(dims).permute(np.argsort(dims).tolist()) == layout
    at = data.draw(st.integers(0, layout.rank))
    widened = layout.unsqueeze([at])
    assert widened.shape[at] == 1
    assert widened.squeeze([at]) == layout


@given(scrambled_layouts())
def test_reshape_keeps_row_major_numbers(layout):
    flat = layout.flatten()
    assert np.array_equal(flat.index_table[:, :, 0], layout.flat_table)
    assert flat.reshape(layout.shape) == layout
    by_modes = layout.reshape(layout.mode_shape)
    assert np.array_equal(by_modes.flat_table, layout.flat_table)
    assert by_modes.reshape(layout.shape) == layout


def test_reshape_cuts_only_where_it_divides():
    assert local(12).reshape([3, 4]) == local(3, 4)
    assert spatial(2, 6).reshape([4, 3]) == spatial(4, 3)
    with pytest.raises(LayoutError, match="straddles"):
        column_local(4, 3).reshape([3, 4])
    with pytest.raises(LayoutError, match="straddles"):
        RegisterLayout((12,), (3, 4), (1,), (0,)).reshape([4, 3])
    with pytest.raises(LayoutError, match="has 12 elements"):
        local(12).reshape([5])


@given(scrambled_layouts(), scrambled_layouts())
def test_concat_joins_indices(f, g):
    joined = f.concat(g)
    assert joined.shape == f.shape + g.shape
    for t in range(0, joined.threads, 3):
        for i in range(0, joined.local_size, 2):
            assert joined.index_of(t, i) == (
                *f.index_of(t // g.threads, i // g.local_size),
                *g.index_of(t % g.threads, i % g.local_size),
            )


@given(scrambled_layouts(), st.data())
def test_reduce_keeps_the_other_coordinates(layout, data):
    dims = sorted(data.draw(st.sets(st.integers(0, layout.rank - 1))))
    reduced = layout.reduce(dims, keepdims=True)
    assert reduced.threads == layout.threads
    for t in range(layout.threads):
        held = {
            tuple(0 if d in dims else x for d, x in enumerate(ix)) for ix in layout.index_table[t].tolist()
        }
        assert {tuple(ix) for ix in reduced.index_table[t].tolist()} == held
    assert layout.reduce(dims) == reduced.squeeze(dims)


@given(
    st.sampled_from([1, 2, 4, 6, 8, 32]), st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=3)
)
def test_auto_local_spatial_uses_all_threads(threads, shape):
    layout = auto_local_spatial(threads, shape)
    assert layout.shape == tuple(shape)
    assert layout.threads == threads
    assert layout.local_size * threads == math.prod(shape) * layout.replicas


def test_auto_local_spatial_spreads_from_the_last_dimension():
    assert auto_local_spatial(32, [16, 16]) == local(8, 1).spatial(2, 16)
    assert auto_local_spatial(8, [2, 2]) == replicate(2) * spatial(2, 2)


@given(scrambled_layouts())
def test_equal_maps_are_equal_objects(layout):
    split_shape = tuple(
        part for size in layout.mode_shape for part in ((2, size // 2) if size % 2 == 0 else (size,))
    )
    starts = np.cumsum([0] + [2 if size % 2 == 0 else 1 for size in layout.mode_shape])

    def split(modes):
        return tuple(
            new for mode in modes for new in ([mode] if mode < 0 else range(starts[mode], starts[mode + 1]))
        )

    refined = RegisterLayout(
        layout.shape,
        split_shape,
        tuple(int(m) for m in split(layout.spatial_modes)),
        tuple(int(m) for m in split(layout.local_modes)),
    )
    assert refined == layout
    assert hash(refined) == hash(layout)


@given(scrambled_layouts())
def test_text_reads_back(layout):
    assert eval(repr(layout), vars(layout_module)) == layout


@given(layouts(rank=3, copies=True))
def test_compositions_print_as_compositions(layout):
    assert not repr(layout).startswith("RegisterLayout")
    assert eval(repr(layout), vars(layout_module)) == layout


def test_text_of_known_layouts():
    for text in (
        "local(2, 1).spatial(8, 4).local(1, 2)",
        "column_local(2, 2).spatial(8, 4).local(1, 2)",
        "local(1)",
    ):
        assert repr(eval(text, vars(layout_module))) == text
    assert repr(RegisterLayout((4,), (2, 2), (1, 0), ())) == "RegisterLayout((4,), (2, 2), (1, 0), ())"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RegisterLayout((4,), (2, 3), (0,), (1,)), "do not multiply to shape"),
        (lambda: RegisterLayout((4,), (4, 2), (0,), (1,)), "do not multiply to shape"),
        (lambda: RegisterLayout((4,), (4,), (0,), (0,)), "each of the 1 modes once"),
        (lambda: RegisterLayout((4,), (4,), (), ()), "each of the 1 modes once"),
        (lambda: RegisterLayout((4,), (4,), (0,), (-2,)), "only spatial ones may be negative"),
        (lambda: local(0), "must be positive"),
        (lambda: local(2, 3).permute([0, 0]), "no permutation"),
        (lambda: local(2, 3).squeeze([0]), "not of size 1"),
        (lambda: local(2, 3).unsqueeze([4]), "not different dimensions of a rank-3"),
        (lambda: local(2, 3).reduce([2]), "has 2 dimensions"),
        (lambda: replicate(0), "at least one thread"),
        (lambda: auto_local_spatial(0, [4]), "0 threads cannot hold"),
        (lambda: column_spatial(2, 3).left_divide(spatial(2, 1)), "on the left"),
    ],
)
def test_bad_layouts(call, message):
    with pytest.raises(LayoutError, match=message):
        call()


def test_places_outside_the_layout():
    with pytest.raises(IndexError, match="has 2 × 3"):
        spatial(2).local(3).index_of(2, 0)


PARITY = json.loads(Path(__file__).with_name("layout_parity.json").read_text(encoding="utf-8"))


def unified(layout):
    parts = (layout.shape, layout.mode_shape, layout.spatial_modes, layout.local_modes)
    return [list(part) for part in parts]


def test_parity_with_the_tilus_package():
    """Answers of tilus 0.2.0, stored by layout_parity.py."""
    assert len(PARITY) >= 150
    for case in PARITY:
        factors = [PRIMITIVES[name](*shape) for name, shape in case["factors"]]
        ours = functools.reduce(operator.mul, factors)
        reduced = ours.reduce([case["reduced_dim"]])
        answers = {
            "whole": ours,
            "quotient": ours / factors[-1],
            "reduced": reduced,
            "concat": ours.concat(reduced),
            "permuted": ours.permute([1, 0]),
            "flat": ours.flatten(),
        }
        assert {name: unified(layout) for name, layout in answers.items()} == {n: case[n] for n in answers}
        for thread, slot, index in case["places"]:
            assert ours.index_of(thread, slot) == tuple(index)
            assert thread in ours.threads_of(index)
            assert ours.slot_of(index) == slot
