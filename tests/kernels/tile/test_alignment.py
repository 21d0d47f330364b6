import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.tile.strategies import layouts

from shoestring.errors import LayoutError
from shoestring.kernels.tile.alignment import choose_atom, fit_atom, operand_a, operand_b, slots_of_operand
from shoestring.kernels.tile.fragments import FMA, MMA_M16N8K16, MMA_M16N8K16_B
from shoestring.kernels.tile.layout import local, replicate, spatial


def brute_force_slots(needed, held):
    """By looking for each element among the thread's own; None where one is missing or slots differ."""
    found = []
    for slot in range(needed.local_size):
        places = set()
        for thread in range(needed.threads):
            index = tuple(
                0 if h == 1 else x for x, h in zip(needed.index_of(thread, slot), held.shape, strict=True)
            )
            own = [s for s in range(held.local_size) if held.index_of(thread, s) == index]
            places.add(own[0] if own else None)
        if len(places) != 1 or None in places:
            return None
        found.append(places.pop())
    return tuple(found)


@settings(max_examples=15)
@given(layouts(factors=2, copies=True), st.data())
def test_slots_equal_brute_force(needed, data):
    dims = data.draw(st.sets(st.sampled_from([0, 1])))
    held = needed.reduce(sorted(dims), keepdims=True)
    assert slots_of_operand(needed, held) == brute_force_slots(needed, held)


@settings(max_examples=15)
@given(st.sampled_from([(2, 4), (4, 2), (1, 8)]), st.permutations([0, 1, 2]), st.permutations([0, 1, 2]))
def test_other_layouts_serve_or_are_refused_as_brute_force_says(split, first, second):
    factors = [local(*split), spatial(2, 2), local(2, 1)]

    def product(order):
        a, b, c = (factors[i] for i in order)
        return a * b * c

    needed, held = product(first), product(second)
    expected = brute_force_slots(needed, held)
    if expected is None:
        with pytest.raises(LayoutError) as caught:
            slots_of_operand(needed, held)
        assert repr(needed) in str(caught.value)
        assert repr(held) in str(caught.value)
    else:
        assert slots_of_operand(needed, held) == expected


def test_operands_of_a_product_spread_over_warps():
    outer_c = local(2, 3) * spatial(2, 4)
    c = outer_c * MMA_M16N8K16.c
    a, b = operand_a(outer_c, 5) * MMA_M16N8K16.a, operand_b(outer_c, 5) * MMA_M16N8K16.b
    assert (a.shape, b.shape, c.shape) == ((64, 80), (80, 96), (64, 96))
    assert (a.replicas, b.replicas) == (4, 2)
    assert choose_atom((MMA_M16N8K16, FMA), a, b, c) is MMA_M16N8K16
    assert fit_atom(MMA_M16N8K16, a, b, c)[2] == outer_c


def test_a_product_no_step_fits_names_every_layout_and_reason():
    c = spatial(8, 4)
    a, b = spatial(8, 4), replicate(8) * spatial(1, 4)
    with pytest.raises(LayoutError, match=r"no matrix step fits.*mma\.m16n8k16: .*fma: ") as caught:
        choose_atom((MMA_M16N8K16, FMA), a, b, c)
    assert all(repr(layout) in str(caught.value) for layout in (a, b, c))
    with pytest.raises(LayoutError, match="differ in k"):
        fit_atom(FMA, local(2, 3), local(4, 5), local(2, 5))


def test_weights_of_the_wrong_warps_are_refused():
    c = spatial(1, 2) * MMA_M16N8K16.c
    a = operand_a(spatial(1, 2), 1) * MMA_M16N8K16.a
    swapped = replicate(2) * local(1, 2) * MMA_M16N8K16_B  # both warps hold both halves, in other slots
    assert choose_atom((MMA_M16N8K16, FMA), a, operand_b(spatial(1, 2), 1) * MMA_M16N8K16.b, c)
    with pytest.raises(LayoutError, match="from thread to thread"):
        choose_atom((MMA_M16N8K16,), a, swapped, c)
