"""Quantiles from counted bits against sorted values; what a threshold keeps of the text it was set on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.models import batches, gpt2, llama
from torch import nn

from shoestring.compression import block_linears, capture_scores
from shoestring.compression.score_quantiles import KEPT_TOKENS, ValueTable, column_norms

BIN = 1 / 128
"""Relative width of a bin."""


@given(
    count=st.integers(1, 3000),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
    q=st.floats(0, 1),
    pieces=st.integers(1, 3),
)
def test_quantiles_are_those_of_the_sorted_values(count, scale, q, pieces):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)) * scale
    table = ValueTable()
    for part in values.chunk(pieces):
        table.add(part)
    assert table.count == count
    for found, exact in ((table.quantile(q), values), (table.magnitude_quantile(q), values.abs())):
        ordered = exact.sort().values.double()
        low, high = ordered[max(int(q * count) - 1, 0)], ordered[min(int(q * count), count - 1)]
        slack = BIN * max(abs(low), abs(high))
        assert low - slack <= found <= high + slack


def test_zeros_and_signs_are_counted():
    table = ValueTable()
    table.add(torch.tensor([-2.0, -0.0, 0.0, 0.0, 2.0]))
    assert table.quantile(0.5) == pytest.approx(0, abs=1e-30)
    assert table.magnitude_quantile(0.55) == pytest.approx(0, abs=1e-30)
    assert table.quantile(0.01) == pytest.approx(-2, rel=2 * BIN)
    assert table.quantile(1.0) == pytest.approx(2, rel=2 * BIN)


def test_a_quantile_of_nothing_or_out_of_range():
    with pytest.raises(ValueError, match="no values were counted"):
        ValueTable().quantile(0.5)
    table = ValueTable()
    table.add(torch.ones(1))
    with pytest.raises(ValueError, match=r"q=1\.5 is no share"):
        table.quantile(1.5)


@given(rows=st.integers(1, 40), cols=st.integers(1, 40))
def test_column_norms_are_those_of_the_spectrum(rows, cols):
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows))
    _, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    spectrum = (vh.T * s).norm(dim=1).float()
    torch.testing.assert_close(column_norms(weight), spectrum, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(column_norms(weight), weight.norm(dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_thresholds_keep_their_share_of_the_inputs(make):
    model, ids = make(), batches(8)
    names = block_linears(model)
    scores = capture_scores(model, ids, names, skip=2)
    assert scores.tokens == 8 * 2 * 22
    seen = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, a, n=name: seen[n].append(a[0][:, 2:]))
        for name in names
    ]
    with torch.no_grad():
        for batch in ids:
            model(batch)
    for handle in handles:
        handle.remove()
    for name in names:
        x, module = torch.cat(seen[name]), model.get_submodule(name)
        norms = module.weight.norm(dim=1 if type(module).__name__ == "Conv1D" else 0)
        for kept in (0.9, 0.5, 0.1):
            share = (x.abs() > scores.threshold(name, kept, weighted=False)).float().mean().item()
            assert share == pytest.approx(kept, abs=0.01)
            weighted = (x.abs() * norms > scores.threshold(name, kept, weighted=True)).float().mean().item()
            assert weighted == pytest.approx(kept, abs=0.01)
        assert scores.samples[name].shape == (KEPT_TOKENS, x.shape[-1])
        flat = x.reshape(-1, x.shape[-1])
        nearest = torch.cdist(scores.samples[name], flat, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        assert nearest.values.max() == 0


def test_layers_of_one_input_share_its_distribution():
    scores = capture_scores(llama(), batches(8), block_linears(llama()))
    path = "model.layers.1."
    assert scores.inputs[path + "self_attn.q_proj"] is scores.inputs[path + "self_attn.v_proj"]
    assert scores.inputs[path + "mlp.gate_proj"] is scores.inputs[path + "mlp.up_proj"]
    assert scores.inputs[path + "self_attn.q_proj"] is not scores.inputs[path + "self_attn.o_proj"]
    assert scores.inputs[path + "self_attn.q_proj"].count == scores.tokens * 32


def test_the_first_tokens_are_left_out():
    model = nn.Sequential(nn.Linear(4, 4))
    x = torch.ones(1, 300, 4)
    x[:, :4] = 1000.0
    scores = capture_scores(model, [x], ["0"])
    assert scores.threshold("0", 0.0, weighted=False) < 1.01


def test_too_little_text_and_numbers_that_are_none():
    with pytest.raises(ValueError, match=r"calibration on 40 tokens .* give text of 256 or more"):
        capture_scores(llama(), batches(1), block_linears(llama()))
    model = llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[3, 3] = torch.inf
    with pytest.raises(ValueError, match=r"inputs of 'model.layers.1.self_attn.o_proj' are not finite"):
        capture_scores(model, batches(8), block_linears(model))
    with pytest.raises(ValueError, match="'model.norm' is no linear layer"):
        capture_scores(llama(), batches(8), ["model.norm"])
    scores = capture_scores(llama(), batches(8), ["model.layers.0.mlp.up_proj"])
    with pytest.raises(ValueError, match="no inputs of 'lm_head' were captured"):
        scores.threshold("lm_head", 0.5, weighted=False)
