"""The experiment behind TurboMind's card: its rows answer the claims, and say what the parts do."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shoestring.compression import AWQ, RoundToNearest, apply, apply_in_sequence
from shoestring.errors import NoCompiler
from shoestring.kernels.linear_dispatch import DispatchedLinear
from shoestring.layers.packed_linear import PackedLinear
from shoestring.numbers import GroupedAffine, ZeroPoint
from shoestring.numbers.affine_fit import fit_min_max
from shoestring.systems import turbomind
from shoestring.systems.language_task import tiny_task
from shoestring.systems.turbomind import decode as turbomind_decode
from shoestring.systems.turbomind import products as turbomind_products
from shoestring.systems.turbomind.claims import BETTER, COST, DECODING, IMPORT, PRODUCTS, WEIGHT_CLAIMS
from shoestring.systems.turbomind.decode import _Multiplied, _with_products, decode_rows
from shoestring.systems.turbomind.products import _Layers, product_rows, tiny_bench
from shoestring.systems.turbomind.quality import QualityTask, quality_rows, window_losses
from shoestring.yardstick import Comparison
from shoestring.yardstick.comparison import Effort


def test_a_smoke_run_answers_every_claim():
    found = turbomind.measure(Effort.SMOKE, 1)
    assert Comparison.from_dict(found.to_dict()) == found
    rows = {row.metric: row for row in found.rows}
    assert len(rows) == len(found.rows)
    for claim in turbomind.card.claims:
        row = rows[claim.metric]
        assert (row.bar, row.better, row.unit) == (claim.bar, claim.better, claim.unit)
    assert turbomind.card.resolve_parts()
    assert set(turbomind.card.claims) >= set(WEIGHT_CLAIMS)


def test_all_forms_of_a_layer_are_one_matrix():
    layers = _Layers.random(tiny_bench(0), turbomind_products.MODEL)
    for packed, weight, half in zip(layers.packed, layers.float32, layers.bfloat16, strict=True):
        x = torch.randn(3, packed.cols, generator=torch.Generator().manual_seed(1))
        expected = F.linear(x, weight)
        torch.testing.assert_close(packed(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(F.linear(x, half.float()), expected, rtol=0.02, atol=0.05)
    for module, weight in zip(layers.dynamic, layers.float32, strict=True):
        x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(module(x), F.linear(x, weight), rtol=0.1, atol=0.1)


def test_quality_rows_say_what_the_models_do():
    task = tiny_task(0, (4, 32), (3, 32))
    imported = apply(tiny_task(0).model, {"*_proj": RoundToNearest(8, 32)})
    rows = {row.metric: row for row in quality_rows(
        QualityTask(task.model, imported, task.calibration, task.held_out, 4)
    )}  # fmt: skip
    exact = window_losses(task.model, task.held_out)
    with torch.inference_mode():
        ids = task.held_out[1]
        logits = task.model(ids[None]).logits[0]
    assert exact[1].item() == pytest.approx(F.cross_entropy(logits[:-1], ids[1:]).item(), rel=1e-5)
    change = window_losses(imported, task.held_out) - exact
    assert rows[IMPORT.metric].ratio == pytest.approx(math.exp(change.mean()))
    margin = 1.959964 * change.std().item() / 3**0.5
    assert rows[IMPORT.metric].spread[0] == pytest.approx(math.exp(change.mean().item() - margin), rel=1e-6)
    for group in (64, 32):
        model = tiny_task(0, (4, 32), (3, 32)).model
        apply_in_sequence(model, {"*_proj": AWQ(4, group, steps=4)}, task.calibration.split(1))
        own = window_losses(model, task.held_out)
        assert rows[COST[group].metric].method == pytest.approx(math.exp(own.mean()), rel=1e-6)
        fits = ("extremes", "least squares")
        plain = [rows[f"perplexity, rounding by {fit}, groups of {group}"].method for fit in fits]
        assert rows[BETTER[group].metric].baseline == pytest.approx(min(plain))


def test_a_search_of_one_step_is_rounding_by_extremes():
    task = tiny_task(0)
    one, weights = tiny_task(0).model, {n: p.clone() for n, p in task.model.named_parameters()}
    apply_in_sequence(one, {"*_proj": AWQ(4, 32, steps=1)}, task.calibration.split(1))
    layer = one.model.layers[0].mlp.up_proj
    weight = weights["model.layers.0.mlp.up_proj.weight"]
    grid = fit_min_max(layer.packed.form, weight)
    assert torch.equal(layer.weight, layer.packed.form.nearest(weight, grid))


def test_models_with_other_products_compute_the_same():
    model = tiny_task(0).model
    packed = turbomind_decode._packed(model, 32)
    assert packed.lm_head.packed.form.bits == 8
    assert packed.model.layers[0].mlp.up_proj.packed.form == GroupedAffine(4, 32, ZeroPoint.INTEGER)

    def dispatched(module: nn.Module) -> nn.Module:
        weight = module.packed
        return _Multiplied(DispatchedLinear(weight.form, weight.stored(), weight.cols))

    other = _with_products(packed, dispatched, PackedLinear)
    assert not any(isinstance(module, PackedLinear) for module in other.modules())
    ids = torch.randint(96, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(other(ids).logits, packed(ids).logits, rtol=1e-3, atol=1e-3)
    assert any(isinstance(module, PackedLinear) for module in packed.modules())


def test_without_a_compiler_times_are_not_measured(monkeypatch):
    def none(*_):
        raise NoCompiler("no C compiler found")

    monkeypatch.setattr(turbomind_products, "_shape_rows", none)
    rows, notes = product_rows(tiny_bench(0))
    assert rows == []
    assert notes == [f"{claim.metric}: not measured, no C compiler found" for claim in PRODUCTS.values()]
    monkeypatch.setattr(turbomind_decode, "_single_row", none)
    task = tiny_task(0, (8, 32))
    rows, notes = decode_rows(task.model, task.calibration, 32, 4, 3)
    assert rows == []
    assert notes == [f"{claim.metric}: not measured, no C compiler found" for claim in DECODING.values()]
