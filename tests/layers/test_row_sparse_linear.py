"""The layer: dense in a prompt, sparse for a token, exact where nothing is left out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.kernels.row_gather import MOST_TOKENS
from shoestring.layers import RowSparseLinear, sparse_tail
from shoestring.layers.row_sparse_linear import (
    EVERY_INPUT,
    NO_INPUT,
    bytes_read,
    reset_counters,
    row_sparse_kernel,
    rows_read,
)
from shoestring.notices import record_fallbacks

sizes = st.sampled_from([1, 2, 9, 33, 64])


def make(inputs, outputs, rank=0, bias=True, seed=0, store=None):
    """A layer with its weight, bias, scales and the best factors of that rank."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    shift = torch.randn(outputs, generator=generator) if bias else None
    layer = RowSparseLinear.of(weight, shift, store).eval()
    parts = ()
    if rank:
        u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
        parts = weight.norm(dim=0), (vh[:rank].T * s[:rank]).float(), u[:, :rank].T.float()
    return layer, weight, shift, parts


@given(inputs=sizes, outputs=sizes, rank=st.sampled_from([0, 1, 5]), tokens=st.integers(1, 5))
def test_with_every_input_it_is_the_linear_map(inputs, outputs, rank, tokens):
    layer, weight, bias, parts = make(inputs, outputs, min(rank, inputs, outputs))
    layer.split(EVERY_INPUT, *parts)
    x = torch.randn(2, tokens, inputs, generator=torch.Generator().manual_seed(1))
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    with sparse_tail(layer, 1.0):
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    one = x[:, :1]
    torch.testing.assert_close(layer(one), expected[:, :1], rtol=1e-5, atol=1e-5)


@given(inputs=sizes, outputs=sizes, quantile=st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_at_full_rank_it_is_exact_for_every_threshold(inputs, outputs, quantile):
    layer, weight, bias, parts = make(inputs, outputs, min(inputs, outputs))
    x = torch.randn(1, 1, inputs, generator=torch.Generator().manual_seed(1))
    score = (x.abs() * weight.norm(dim=0)).flatten()
    threshold = NO_INPUT if quantile == 1.0 else torch.quantile(score, quantile).item()
    layer.split(threshold, *parts)
    kept = int((score > threshold).sum())
    torch.testing.assert_close(layer(x), F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    assert layer.counts.tolist() == [kept, 1], "the layer chose other inputs than the equation"


@given(inputs=sizes, outputs=sizes, quantile=st.floats(0, 1))
def test_what_is_kept_and_the_rest_make_the_whole(inputs, outputs, quantile):
    layer, weight, _, _ = make(inputs, outputs, bias=False)
    x = torch.randn(1, 1, inputs, generator=torch.Generator().manual_seed(1))
    layer.split(torch.quantile(x.abs().flatten(), quantile).item())
    rest = x * (x.abs() <= layer.threshold)
    torch.testing.assert_close(layer(x) + F.linear(rest, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 6])
def test_a_prompt_is_dense_and_its_tail_as_if_decoded(rank):
    layer, weight, bias, parts = make(48, 40, rank)
    layer.split(0.8 if rank else 0.5, *parts)
    x = torch.randn(2, 10, 48, generator=torch.Generator().manual_seed(3))
    dense = F.linear(x, weight, bias)
    torch.testing.assert_close(layer(x), dense)
    decoded = torch.cat([layer(x[:, i : i + 1]) for i in range(10)], 1)
    assert (decoded - dense).abs().max() > 0.1
    with sparse_tail(layer, 0.3):
        y = layer(x)
    torch.testing.assert_close(y[:, :7], dense[:, :7])
    torch.testing.assert_close(y[:, 7:], decoded[:, 7:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x), dense)


def test_low_rank_alone_and_columns_alone():
    layer, weight, _, parts = make(30, 20, 4, bias=False)
    x = torch.randn(1, 1, 30)
    layer.split(NO_INPUT, *parts)
    torch.testing.assert_close(layer(x), x @ parts[1] @ parts[2], rtol=1e-4, atol=1e-5)
    assert layer.counts.tolist() == [0, 1]
    layer.split(0.7)
    assert layer.rank == 0
    torch.testing.assert_close(layer(x), F.linear(x * (x.abs() > 0.7), weight), rtol=1e-4, atol=1e-5)


def test_rows_and_bytes_are_counted():
    layer, _, _, parts = make(16, 8, 3, bias=False, store=torch.bfloat16)
    layer.split(0.5, *parts)
    model = nn.Sequential(layer)
    xs = [torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    score = torch.cat(xs).abs().flatten(1) * layer.scales
    kept = int((score > 0.5).sum())
    for x in xs:
        model(x)
    assert rows_read(model) == {"0": kept / (5 * 16)}
    numbers = kept * 8 + (5 * 16 - kept) * 3 + 5 * 3 * 8
    assert bytes_read(model) == 2 * numbers + 5 * 4 * 16
    reset_counters(model)
    assert math.isnan(rows_read(model)["0"])
    with sparse_tail(model, 1.0):
        model(torch.cat(xs, 1))
    assert rows_read(model) == {"0": kept / (5 * 16)}


def test_many_sequences_at_once_are_dense_and_say_so():
    layer, weight, bias, _ = make(12, 12)
    layer.split(0.5)
    x = torch.randn(MOST_TOKENS + 1, 1, 12)
    with record_fallbacks() as said:
        few = layer(x[:-1])
    assert said == []
    assert (few - F.linear(x[:-1], weight, bias)).abs().max() > 1e-3
    with record_fallbacks() as said:
        many = layer(x)
    torch.testing.assert_close(many, F.linear(x, weight, bias))
    assert f"dense for more than {MOST_TOKENS} sequences" in said[0]


def test_it_is_for_inference_only():
    layer, *_ = make(4, 4)
    with pytest.raises(RuntimeError, match=r"R-Sparse is inference only; call eval\(\)"):
        layer.train()(torch.randn(1, 1, 4))


def test_types_change_the_matrices_and_not_the_threshold():
    layer, _, _, parts = make(24, 16, 4)
    layer.split(0.123456789, *parts)
    before = layer.threshold.clone(), layer.scales.clone()
    layer.to(torch.bfloat16)
    assert (layer.rows.dtype, layer.up.dtype, layer.bias.dtype) == (torch.bfloat16,) * 3
    assert torch.equal(layer.threshold, before[0])
    assert torch.equal(layer.scales, before[1])
    x = torch.randn(1, 1, 24)
    exact = layer.weights
    torch.testing.assert_close(
        layer(x),
        x * exact.kept(x) @ exact.rows.float()
        + x * ~exact.kept(x) @ exact.down.float() @ exact.up.float()
        + exact.bias.float(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_loaded_state_is_the_one_that_runs():
    """What was known of the layer before must not answer afterwards."""
    layer, _, _, parts = make(24, 16, 4)
    other, _, _, others = make(24, 16, 4, seed=5)
    layer.split(0.3, *parts)
    other.split(0.9, *others)
    x = torch.randn(1, 1, 24)
    before = layer(x)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))
    assert not torch.equal(layer(x), before)


def test_a_decode_step_gets_the_kernel():
    layer, *_ = make(24, 16)
    layer.split(0.4)
    kernel = row_sparse_kernel(layer)
    assert isinstance(kernel, LinearKernel)
    x = torch.randn(3, 24)
    torch.testing.assert_close(kernel(x), torch.cat([layer(row[None]) for row in x]), rtol=1e-5, atol=1e-6)
    assert row_sparse_kernel(nn.Linear(3, 3)) is None


def test_what_does_not_fit():
    layer, _, _, parts = make(24, 16, 4)
    with pytest.raises(ValueError, match="threshold is not a number"):
        layer.split(float("nan"))
    with pytest.raises(ValueError, match=r"scales is \(25,\); rows of 24×16 take \(24,\)"):
        layer.split(1.0, torch.ones(25), torch.randn(25, 4), parts[2])
    with pytest.raises(ValueError, match=r"share=1\.5 must lie between 0"), sparse_tail(layer, 1.5):
        pass
    with (
        pytest.raises(ValueError, match="no RowSparseLinear; apply RSparse"),
        sparse_tail(nn.Linear(2, 2), 0.5),
    ):
        pass
