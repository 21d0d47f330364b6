"""The kernels of grouped codes against their definition, for every width, and on lesser processors."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from shoestring.kernels import grouped_linear
from shoestring.kernels.grouped_linear import (
    Activations,
    GroupedWeights,
    block_inputs,
    grouped_kernel,
    has_matrix_tiles,
    naive_grouped_linear,
    naive_rounded_linear,
)
from shoestring.numbers.grouped_affine import AffineGrid, GroupedAffine, ZeroPoint

LESSER = {
    "no tiles": ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16"),
    "avx2": ("-mno-avx512f",),
    "portable": ("-march=x86-64",),
}
MANY = 32
forms = st.builds(
    GroupedAffine,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([1, 3, 8, 16, 24, 32, 36, 48, 64, 96, 97, 128]),
    zero_point=st.sampled_from(ZeroPoint),
    scale_bits=st.sampled_from([6, 8, 16, 32]),
)


def stored_matrix(form, rows, groups, seed):
    """Random codes on a random grid, and the matrix that they stand for."""
    generator = torch.Generator().manual_seed(seed)
    cols = groups * form.group_size
    codes = torch.randint(form.levels, (rows, cols), generator=generator, dtype=torch.uint8)
    scale = 0.01 + torch.rand(rows, groups, generator=generator)
    shift = torch.randn(rows, groups, generator=generator)
    if form.zero_point is ZeroPoint.INTEGER:
        shift = torch.randint(form.levels, (rows, groups), generator=generator).float()
    stored = form.store(codes, form.represent(scale, shift))
    return stored, form.dequantise(stored, cols)


def near(found, x, weight, expected, units, more=0.0):
    """Within so many roundings of float32 of what the terms of the sum add up to."""
    bound = units * 2**-24 * (x.double().abs() @ weight.double().abs().T + 1e-30)
    assert ((found.double() - expected).abs() <= bound + more).all()


@given(
    form=forms,
    rows=st.integers(1, 40),
    groups=st.integers(1, 5),
    tokens=st.one_of(st.integers(1, 9), st.integers(32, 60)),
    seed=st.integers(0, 99),
)
def test_products_equal_the_definition(form, rows, groups, tokens, seed):
    stored, weight = stored_matrix(form, rows, groups, seed)
    packed = GroupedWeights.pack(form, stored, weight.shape[1])
    x = torch.randn(tokens, weight.shape[1], generator=torch.Generator().manual_seed(seed + 1))
    bias = torch.randn(rows, generator=torch.Generator().manual_seed(seed + 2))
    # What is added and taken away again (offsets, zero points) counts as a term as well.
    terms = weight.abs() + 2 * form.levels * form.grid(stored, weight.shape[1]).scale.amax()
    for activations in Activations:
        found = packed.kernel(activations, bias)(x)
        if activations is Activations.INT8 and tokens >= MANY and has_matrix_tiles():
            # A weight that float32 does not hold exactly may be rounded to the bfloat16 on its other side.
            other_side = 0.0 if form.scale_bits == 16 else 2**-7 * float(x.abs().max() * weight.abs().max())
            near(found, x.abs() + 1, terms, naive_rounded_linear(x, weight) + bias, 8, other_side)
        else:
            expected = naive_grouped_linear(x, weight, form.group_size, activations) + bias
            near(found, x.abs() + 1, terms, expected, 8)


@given(form=forms, rows=st.integers(1, 40), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_many_rows_equal_the_definition_without_matrix_tiles(form, rows, groups, seed):
    stored, weight = stored_matrix(form, rows, groups, seed)
    packed = GroupedWeights.pack(form, stored, weight.shape[1])
    x = torch.randn(MANY + seed % 9, weight.shape[1], generator=torch.Generator().manual_seed(seed + 1))
    terms = weight.abs() + 2 * form.levels * form.grid(stored, weight.shape[1]).scale.amax()
    library = grouped_linear._library(LESSER["no tiles"])
    for activations in Activations:
        expected = naive_grouped_linear(x, weight, form.group_size, activations)
        near(grouped_kernel(packed, activations, None, library)(x), x.abs() + 1, terms, expected, 8)


@pytest.mark.parametrize("activations", Activations)
@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 65])
@pytest.mark.parametrize("bits", range(2, 9))
def test_products_are_those_of_the_decoded_matrix(bits, tokens, activations):
    form = GroupedAffine(bits, 32, ZeroPoint.REAL)
    stored, weight = stored_matrix(form, 67, 5, seed=bits)
    x = torch.randn(tokens, 160, generator=torch.Generator().manual_seed(tokens))
    found = GroupedWeights.pack(form, stored, 160).kernel(activations)(x)
    exact = x @ weight.T
    rounding = 1e-5 if activations is Activations.FLOAT32 else 1e-2
    assert float((found - exact).abs().max()) <= rounding * float((x.abs() @ weight.abs().T).max())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zero_point", [ZeroPoint.SYMMETRIC, ZeroPoint.INTEGER])
def test_whole_numbers_are_exact_on_every_processor(bits, zero_point):
    form = GroupedAffine(bits, 48, zero_point)
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(form.levels, (35, 144), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(form.levels, (35, 3), generator=generator).float()
    stored = form.store(codes, form.represent(torch.ones(35, 3), zeros))
    weight = form.dequantise(stored, 144)
    x = torch.randint(-127, 128, (41, 144), generator=generator).float()
    x[:, ::16] = 127.0  # the scale of every block is then 1
    packed = GroupedWeights.pack(form, stored, 144)
    expected = (x.long() @ weight.long().T).float()
    for flags in ((), *LESSER.values()):
        library = grouped_linear._library(flags)
        for activations in Activations:
            kernel = grouped_kernel(packed, activations, None, library)
            assert torch.equal(kernel(x[:5]), expected[:5]), flags
            assert torch.equal(kernel(x), expected), flags  # many rows go another way


@pytest.mark.parametrize("tokens", [6, 40])
@pytest.mark.parametrize("flags", LESSER.values(), ids=LESSER)
@pytest.mark.parametrize("bits", range(2, 9))
def test_lesser_processors_give_the_same_up_to_the_last_rounding(flags, bits, tokens):
    form = GroupedAffine(bits, 32, ZeroPoint.REAL)
    stored, _ = stored_matrix(form, 33, 4, seed=bits)
    packed = GroupedWeights.pack(form, stored, 128)
    x = torch.randn(tokens, 128, generator=torch.Generator().manual_seed(0))
    for activations in Activations:
        here = packed.kernel(activations)(x)
        there = grouped_kernel(packed, activations, None, grouped_linear._library(flags))(x)
        rounded = activations is Activations.INT8 and tokens >= MANY and has_matrix_tiles()
        atol = (0.05 if rounded else 1e-4) * float(here.std())
        torch.testing.assert_close(there, here, rtol=0, atol=atol)


def test_one_bit_codes():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2, (20, 64), generator=generator, dtype=torch.uint8)
    x = torch.randint(-127, 128, (3, 64), generator=generator).float()
    x[:, ::32] = 127.0

    class OneBit(GroupedAffine):
        """The container allows two bits and more; the kernel also one."""

        def __post_init__(self):
            pass

    form = OneBit(1, 32)
    stored = form.store(codes, AffineGrid(torch.ones(20, 2), torch.ones(20, 2), torch.zeros(20, 2)))
    packed = GroupedWeights.pack(form, stored, 64)
    expected = (x.long() @ (codes.long() - 1).T).float()
    for activations in Activations:
        assert torch.equal(packed.kernel(activations)(x), expected)


@pytest.mark.parametrize("activations", Activations)
def test_neither_threads_nor_company_change_a_bit(activations):
    form = GroupedAffine(3, 32, ZeroPoint.REAL)
    stored, _ = stored_matrix(form, 100, 4, seed=1)
    kernel = GroupedWeights.pack(form, stored, 128).kernel(activations)
    x = torch.randn(7, 128, generator=torch.Generator().manual_seed(0))
    together = kernel(x)
    assert torch.equal(torch.cat([kernel(row[None]) for row in x]), together)
    many = torch.randn(250, 128, generator=torch.Generator().manual_seed(0))
    alone = kernel(many)
    assert torch.equal(kernel(many[100:150]), alone[100:150])
    torch.set_num_threads(2)
    try:
        assert torch.equal(kernel(x), together)
        assert torch.equal(kernel(many), alone)
    finally:
        torch.set_num_threads(1)


def test_what_is_not_finite_reaches_the_outputs_and_zeros_stay_zeros():
    form = GroupedAffine(4, 32)
    stored, _ = stored_matrix(form, 16, 2, seed=0)
    kernel = GroupedWeights.pack(form, stored, 64).kernel(Activations.INT8)
    x = torch.zeros(3, 64)
    x[1, 40], x[2, 3] = torch.nan, torch.inf
    y = kernel(x)
    assert (y[0] == 0).all()
    assert y[1:].isnan().all()
    many = kernel(x.repeat(15, 1))
    assert (many[::3] == 0).all()
    assert many[1::3].isnan().all()
    assert not many[2::3].isfinite().any()


@given(group_size=st.integers(1, 600))
def test_blocks_divide_groups(group_size):
    block = block_inputs(group_size)
    assert group_size % block == 0
    # Where a part of the group is whole runs of sixteen, nothing is wasted.
    assert group_size % 16 or block % 16 == 0


def test_bytes_stay_the_same():
    for bits in range(2, 9):
        form = GroupedAffine(bits, 32, ZeroPoint.REAL)
        stored, weight = stored_matrix(form, 64, 3, seed=0)
        assert GroupedWeights.pack(form, stored, weight.shape[1]).nbytes == form.nbytes(*weight.shape)


@given(form=forms, groups=st.integers(1, 4), seed=st.integers(0, 99))
def test_rows_are_those_of_the_stored_form_bit_for_bit(form, groups, seed):
    stored, weight = stored_matrix(form, 37, groups, seed)
    packed = GroupedWeights.pack(form, stored, weight.shape[1])
    ids = torch.tensor([36, 0, 15, 16, 0])
    assert torch.equal(packed.rows(ids), weight[ids])
    with pytest.raises(IndexError, match="37"):
        packed.rows(torch.tensor([37]))
