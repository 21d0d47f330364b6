"""The experiment behind the card of the Axial Transformer: its rivals, its data, and that it can fail."""

import numpy as np
import pytest
import torch

from shoestring.layers.axial.along_axis import from_lines, to_lines
from shoestring.models.axial_image_config import AxialImageConfig
from shoestring.systems.axial_transformer import density as density
from shoestring.systems.axial_transformer.cost import along_lines, explicit_attention, over_everything
from shoestring.systems.axial_transformer.gpu import gpu_rows
from shoestring.systems.axial_transformer.rivals import LocalLineAttention, RowMajorModel
from shoestring.yardstick.causality import influence


def loud(module, scale=0.7):
    generator = torch.Generator().manual_seed(0)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


@pytest.mark.parametrize("width", [1, 3, 4, 7])
def test_local_attention_sees_exactly_the_nearest(width):
    attention = loud(LocalLineAttention(2, 1, width))
    x = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = influence(lambda x: attention(x[None])[0], x) != 0
    apart = torch.arange(9)[:, None] - torch.arange(9)
    assert torch.equal(found, (apart >= 0) & (apart < width))


@pytest.mark.parametrize("window", [None, 4])
def test_rivals_are_causal_and_start_uniform(window):
    cfg = AxialImageConfig(height=3, width=3, channels=1, n_values=4, dim=4, n_heads=2, encoder_layers=0)
    torch.manual_seed(0)
    model = RowMajorModel(cfg, 2, window).double()
    images = torch.randint(4, (1, 1, 3, 3), generator=torch.Generator().manual_seed(0))
    assert model.loss(images).item() == pytest.approx(np.log(4), abs=1e-3)
    loud(model)
    with torch.no_grad():
        before = model(images).view(9, 4)
        for position in range(9):
            other = images.flatten().clone()
            other[position] = (other[position] + 1) % 4
            changed = ((model(other.view(1, 1, 3, 3)).view(9, 4) - before) != 0).any(-1)
            assert not changed[: position + 1].any()
            assert changed[position + 1 : position + 3].all()


def test_a_rival_draws_with_its_cache_what_it_learnt_without():
    cfg = AxialImageConfig(height=2, width=3, n_values=5, dim=4, n_heads=2)
    model = loud(RowMajorModel(cfg, 2)).eval()
    images = torch.randint(5, (2, 3, 2, 3), generator=torch.Generator().manual_seed(0))
    caches = [block.attention.cache(2, 18) for block in model.blocks]
    places = (model.channel[:, None, None] + model.position()).flatten(0, 2)
    values = images.flatten(1)
    with torch.no_grad():
        steps = [
            model.step((model.embedding(values[:, t - 1]) if t else 0) + places[t].expand(2, -1), caches)
            for t in range(18)
        ]
        torch.testing.assert_close(torch.stack(steps, 1), model(images).flatten(1, 3))


def test_what_is_timed_is_attention():
    """Row and column, fused and spelt out; the last axis that is timed is the columns'."""
    qkv = torch.randn(2, 3, 5, 768, generator=torch.Generator().manual_seed(0))
    spelt = from_lines(explicit_attention(to_lines(qkv, 0)), 0, 2, (3, 5))
    torch.testing.assert_close(along_lines(qkv), spelt, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        over_everything(qkv), explicit_attention(qkv.flatten(1, 2)), rtol=1e-4, atol=1e-5
    )


def test_grey_values_are_means_over_squares():
    images = np.array([[[0, 255], [255, 255]], [[16, 16], [16, 16]]], dtype=np.uint8)
    assert density.grey(images, 2).tolist() == [[[[11]]], [[[1]]]]
    assert density.grey(images, 1).flatten().tolist() == [0, 15, 15, 15, 1, 1, 1, 1]


def test_training_lowers_bits_and_a_worse_model_shows(monkeypatch):
    """A few steps on digits; where the axial model learns nothing, the bars fall short."""
    task = density.digit_images(0)
    settings = density.DensitySettings(seconds=0.3, batch=8, judged=40, rounds=3, dim=12)
    monkeypatch.setattr(density, "_equal_steps", lambda models, batch, settings: dict.fromkeys(models, 15))
    rows, notes = density.density_rows(task, settings, 0)
    assert all(row.method < 3.9 and row.baseline < 3.95 for row in rows)
    assert len(notes) == 3
    monkeypatch.setitem(density.RATES, "axial", 1e-9)
    monkeypatch.setattr(density, "_equal_steps", lambda models, batch, settings: dict.fromkeys(models, 6))
    rows, _ = density.density_rows(task, settings, 0)
    assert [row.holds for row in rows] == [False, False]
    assert all(row.spread[0] > 0 for row in rows)


def test_the_gpu_experiment_runs_on_what_there_is():
    cfg = AxialImageConfig(height=4, width=4, n_values=8, dim=16, n_heads=2)
    rows = gpu_rows(cfg, batch=2, drawn=6, device="cpu", seed=0)
    assert [row.metric for row in rows] == ["time of a training picture, GPU", "time of a drawn value, GPU"]
    assert all(row.method > 0 and row.baseline > 0 for row in rows)
