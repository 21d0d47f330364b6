"""Every compiled kernel states what a call costs: the counter sees it, by figures worked out by hand."""

import importlib
import pkgutil

import pytest
import torch

from shoestring import kernels
from shoestring.kernels.dense_linear import dense_linear
from shoestring.kernels.dequantise import dequantise_rows
from shoestring.kernels.grouped_rounding import compensate_block, empty_grid, fit_groups
from shoestring.kernels.ngram_counting import count_matches
from shoestring.kernels.rounding import round_to_format
from shoestring.layers.packed_linear import PackedLinear, PackedWeight
from shoestring.numbers import FORMATS
from shoestring.numbers.affine_fit import fit_min_max
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint
from shoestring.yardstick.flops import CostCounter


def count(work) -> CostCounter:
    with CostCounter() as cost:
        work()
    return cost


@pytest.fixture(params=["compiled", "plain"])
def way(request, monkeypatch):
    """With the compiled loops, and with what answers in their place: the cost is of the work, not the way."""
    if request.param == "plain":
        monkeypatch.setenv("SHOESTRING_CC", "none")
    caches = [getattr(module, "_library", None) for module in modules()]
    for cache in filter(None, caches):
        cache.cache_clear()
    yield request.param
    for cache in filter(None, caches):
        cache.cache_clear()


def modules():
    return [
        importlib.import_module(f"{kernels.__name__}.{info.name}")
        for info in pkgutil.iter_modules(kernels.__path__)
    ]


def test_no_kernel_is_forgotten():
    """Whoever adds a compiled kernel adds its cost, and a test of it: here, or beside the kernel's own."""
    compiled = {m.__name__.rpartition(".")[2] for m in modules() if hasattr(m, "load_library")} - {"native"}
    here = {"dequantise", "grouped_rounding", "ngram_counting", "rounding"}
    as_linear_kernels = {"dense_linear", "grouped_linear", "linear_kernel"}
    elsewhere = {
        "attention_columns",
        "cached_attention",
        "cauchy_compiled",
        "causal_conv1d",
        "column_sums",
        "compressed_rows",
        "damped_averages",
        "decode_batch",
        "decode_group",
        "decode_step",
        "dual_binary",
        "fft_convolution_compiled",
        "gated_attention",
        "row_gather",
        "selective_scan_compiled",
        "tier_codes",
        "vandermonde_compiled",
    }
    in_packed_linear = {"limbs", "packed_product"}
    assert compiled == here | as_linear_kernels | elsewhere | in_packed_linear


def test_a_linear_kernel_is_a_multiply_add_for_every_weight():
    weight, x = torch.randn(6, 10).bfloat16(), torch.randn(3, 10)
    cost = count(lambda: dense_linear(weight)(x))
    assert cost.stated_flops == 2 * 3 * 60
    assert cost.bytes == weight.nbytes + x.nbytes + 3 * 6 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_one_operation_an_element(way, dtype):
    x = torch.randn(7, 9, dtype=dtype)
    cost = count(lambda: round_to_format(x, FORMATS["e4m3fn"]))
    assert (cost.stated_flops, cost.flops, cost.bytes) == (63, 63, 2 * x.nbytes)
    assert cost.flops_by_operation == {"round_to_format": 63}
    strided = count(lambda: round_to_format(x.T, FORMATS["e4m3fn"]))
    assert (strided.flops, strided.bytes) == (63, 2 * x.nbytes)


def test_dequantising_is_a_multiply_add_a_weight(way):
    form = GroupedAffine(4, 16, ZeroPoint.REAL)
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    grid = fit_min_max(form, weight)
    stored = form.store(form.encode(weight, grid), grid)
    cost = count(lambda: dequantise_rows(form, stored, 32))
    # 16 bytes of codes, two scales and two offsets of 2 bytes a row; 32 floats out
    assert (cost.flops, cost.bytes) == (2 * 5 * 32, 5 * (16 + 4 + 4) + 5 * 32 * 4)
    layer, x = PackedLinear(PackedWeight.of(form, form.encode(weight, grid), grid)), torch.randn(3, 32)
    cost = count(lambda: layer(x))
    assert (cost.contraction_flops, cost.stated_flops) == (2 * 3 * 32 * 5, 2 * 5 * 32)


def test_counting_ngrams_is_a_lookup_for_each(way):
    candidates, references = torch.tensor([[1, 2, 3], [4, -1, -1]]), torch.tensor([[[1, 2]], [[4, 5]]])
    lengths = torch.tensor([3, 1]), torch.tensor([[2], [2]])
    cost = count(lambda: count_matches(candidates, lengths[0], references, lengths[1], 4))
    # candidates 3 + 2 + 1 and 1, references twice 2 + 1; ids and lengths in, two rows of four orders out
    assert (cost.flops, cost.bytes) == (7 + 6, 8 * (6 + 2 + 4 + 2) + 8 * 2 * 4)


@pytest.mark.parametrize("zero_point", ZeroPoint)
def test_fitting_and_compensating_state_their_search(way, zero_point):
    form = GroupedAffine(3, 8, zero_point)
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    tries = {ZeroPoint.SYMMETRIC: 2 * 18, ZeroPoint.INTEGER: 18, ZeroPoint.REAL: 18}[zero_point] + 2
    one_try = 24 if zero_point is ZeroPoint.REAL else 17
    fit = 64 * (2 + tries * one_try + 4 * 13)
    cost = count(lambda: fit_groups(form, weight))
    assert (cost.flops, cost.bytes) == (fit, 64 * 4 + 8 * 3 * 4)

    importance, upper = torch.ones(16), torch.eye(16)
    grid, codes = empty_grid(form, weight), torch.zeros(4, 16, dtype=torch.uint8)
    cost = count(lambda: compensate_block(form, weight, importance, upper, 0, 16, grid, codes))
    spread = 4 * sum(2 * (15 - column) for column in range(16))
    assert cost.flops == fit + 64 * 11 + spread
    assert cost.bytes == 4 * (64 + 16 + 136 + 64 + 64) + 64 + 8 * 3 * 4
    assert not cost.unknown


def test_nothing_is_counted_for_what_is_refused():
    with CostCounter() as cost, pytest.raises(TypeError, match="cast explicitly"):
        round_to_format(torch.arange(3), FORMATS["half"])
    assert cost.flops == 0
