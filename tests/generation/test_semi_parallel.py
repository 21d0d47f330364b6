"""Pictures drawn in three ways from the same noise are the same pictures, and draws of the model."""

import itertools

import pytest
import torch

from shoestring.generation.semi_parallel import (
    gumbel_noise,
    naive_pixels,
    sample_images,
    semi_parallel_pixels,
    stepped_pixels,
)
from shoestring.models.axial_image_config import AxialImageConfig
from shoestring.models.axial_image_model import AxialImageModel


def build(seed=0, **fields):
    torch.manual_seed(seed)
    fields = {"height": 3, "width": 4, "channels": 1, "n_values": 5, "dim": 4, "n_heads": 2} | fields
    fields.setdefault("encoder_layers", 2 if fields["channels"] > 1 else 0)
    model = AxialImageModel(AxialImageConfig(**fields)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"channels": 3, "height": 2, "width": 3},
        {"outer_layers": 4, "inner_layers": 3, "height": 5, "width": 2},
        {"height": 1, "width": 3},
        {"height": 3, "width": 1, "channels": 2},
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_three_ways_draw_the_same_pictures(fields, temperature):
    model = build(**fields)
    noise = gumbel_noise(model.cfg, 3, torch.Generator().manual_seed(1), torch.float64)
    ways = (naive_pixels, semi_parallel_pixels, stepped_pixels)
    naive, semi_parallel, stepped = (
        sample_images(model, noise, temperature=temperature, pixels=way) for way in ways
    )
    assert torch.equal(naive, semi_parallel)
    assert torch.equal(naive, stepped)
    assert torch.equal(sample_images(model, noise, temperature=temperature), stepped)
    assert len(naive.unique()) > 1
    assert len({tuple(image.flatten().tolist()) for image in naive}) > 1, "each picture has its own noise"


def test_pixels_come_in_order_and_can_be_left_early():
    model = build(channels=2, height=2, width=2)
    noise = gumbel_noise(model.cfg, 1, torch.Generator().manual_seed(0), torch.float64)
    for way in (naive_pixels, semi_parallel_pixels, stepped_pixels):
        places = [place for _, place in way(model, noise)]
        assert places == list(itertools.product(range(2), repeat=3))
        images, place = next(way(model, noise))
        assert place == (0, 0, 0)
        assert int((images != 0).sum()) <= 1


def test_frequencies_are_the_probabilities_of_the_model():
    model = build(height=1, width=2, n_values=2)
    noise = gumbel_noise(model.cfg, 4000, torch.Generator().manual_seed(3), torch.float64)
    found = sample_images(model, noise).flatten(1)
    for picture in itertools.product((0, 1), repeat=2):
        image = torch.tensor(picture)
        with torch.no_grad():
            share = 2 ** -(2 * model.bits_per_dimension(image.view(1, 1, 1, 2))).item()
        frequency = (found == image).all(1).double().mean().item()
        assert abs(frequency - share) < 4.5 * (share * (1 - share) / 4000) ** 0.5 + 1e-9


def test_noise_follows_gumbels_distribution():
    """Mean is Euler's constant, variance pi^2 / 6, and the seed decides."""
    cfg = AxialImageConfig(height=10, width=10, channels=1, encoder_layers=0, n_values=100)
    noise = gumbel_noise(cfg, 5, torch.Generator().manual_seed(0))
    assert noise.shape == (5, 1, 10, 10, 100)
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.03)
    assert noise.var().item() == pytest.approx(1.64493, abs=0.1)
    assert torch.equal(noise, gumbel_noise(cfg, 5, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("way", [naive_pixels, semi_parallel_pixels, stepped_pixels])
def test_bad_input_is_named(way):
    model = build()
    good = gumbel_noise(model.cfg, 1, torch.Generator().manual_seed(0), torch.float64)
    for bad in (good[0], good[..., :4], good[:, :, :2], good[:0]):
        with pytest.raises(ValueError, match=r"noise has shape .* wants \(batch, 1, 3, 4, 5\)"):
            sample_images(model, bad, pixels=way)
    with pytest.raises(ValueError, match="temperature=0"):
        sample_images(model, good, temperature=0, pixels=way)
