"""Random layouts for property tests."""

from hypothesis import strategies as st

from shoestring.kernels.tile.layout import (
    RegisterLayout,
    column_local,
    column_spatial,
    local,
    replicate,
    spatial,
)

PRIMITIVES = {
    "local": local,
    "spatial": spatial,
    "column_local": column_local,
    "column_spatial": column_spatial,
}


@st.composite
def primitives(draw, rank):
    make = PRIMITIVES[draw(st.sampled_from(sorted(PRIMITIVES)))]
    return make(*(draw(st.sampled_from([1, 1, 2, 3, 4])) for _ in range(rank)))


@st.composite
def layouts(draw, rank=2, factors=3, copies=False):
    """Products of primitives, of at most 200 places."""
    layout = local(*[1] * rank)
    for _ in range(draw(st.integers(0, factors))):
        factor = draw(primitives(rank))
        if copies and draw(st.booleans()):
            factor = replicate(draw(st.integers(2, 3))) * factor
        if layout.threads * layout.local_size * factor.threads * factor.local_size <= 200:
            layout = layout * factor
    return layout


@st.composite
def scrambled_layouts(draw, copies=True):
    """Any layout in the unified form, compositions or not."""
    shape, modes = [], []
    for _ in range(draw(st.integers(1, 3))):
        parts = draw(st.lists(st.sampled_from([2, 3, 4]), max_size=2))
        modes += parts
        shape.append(1)
        for part in parts:
            shape[-1] *= part
    order = draw(st.permutations(range(len(modes))))
    cut = draw(st.integers(0, len(modes)))
    spatial_modes = list(order[:cut])
    if copies and draw(st.booleans()):
        spatial_modes.insert(draw(st.integers(0, cut)), -draw(st.integers(2, 3)))
    return RegisterLayout(tuple(shape), tuple(modes), tuple(spatial_modes), tuple(order[cut:]))
