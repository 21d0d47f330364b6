"""The Axial Transformer: what each logit depends on, that its probabilities are ones, and its bad input."""

import itertools
import math

import pytest
import torch

from shoestring.models.axial_image_config import IMAGENET_32, IMAGENET_64, AxialImageConfig
from shoestring.models.axial_image_model import AxialImageModel
from shoestring.yardstick.causality import influence


def build(seed=0, scale=0.7, **fields):
    """A model in float64 with weights far from the start, at which blocks do nothing."""
    fields = {"height": 3, "width": 4, "channels": 1, "n_values": 5, "dim": 4, "n_heads": 2} | fields
    fields.setdefault("encoder_layers", 2 if fields["channels"] > 1 else 0)
    model = AxialImageModel(AxialImageConfig(**fields)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def pictures(cfg, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(cfg.n_values, (batch, *cfg.image_shape), generator=generator)


@pytest.mark.parametrize("inner_layers", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 1), (1, 3)])
def test_a_pixel_sees_exactly_the_pixels_before_it(height, width, inner_layers):
    """With two outer layers and one inner layer the receptive field is complete already."""
    model = build(height=height, width=width, inner_layers=inner_layers, n_values=2)
    embedded = model.embedding(pictures(model.cfg, 1, seed=2)[:, 0]).detach()

    def logits(pixels):
        grid = pixels.view(1, height, width, -1)
        return model.decode(grid, model.upper_features(grid, None), None).flatten(0, 2)

    found = influence(logits, embedded.flatten(0, 2))
    assert torch.equal(found != 0, torch.ones_like(found, dtype=torch.bool).tril(-1))


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_channel_sees_all_of_the_earlier_channels_and_nothing_of_the_later(channel):
    """At every position of the earlier ones, through planes that are 0 for its own and the later ones."""
    model = build(channels=3, height=2, width=3)
    images = pictures(model.cfg, 1, seed=1)
    asked = torch.tensor([channel])
    planes = model.encoder.planes(images, asked)
    scaled = torch.where(torch.arange(3)[:, None, None] < channel, images[0] / 4, 0.0)
    torch.testing.assert_close(planes[0, :3], scaled.double())
    assert torch.equal(planes[0, 3:], torch.eye(3)[channel][:, None, None].expand(3, 2, 3).double())

    own = images[:, channel]
    condition_of = model.encoder
    embedded = model.embedding(own).detach()

    def logits(values):
        condition = condition_of(torch.cat([values.view(1, 3, 2, 3), planes[:, 3:].detach()], 1))
        return model.decode(embedded, model.upper_features(embedded, condition), condition).flatten(0, 2)

    found = influence(logits, planes[:, :3].reshape(-1, 1).detach()) != 0
    assert bool(found.view(6, 3, 6)[:, :channel].all())
    later = images.clone()
    later[:, channel:] = (later[:, channel:] + 1) % 5
    assert torch.equal(model.encode(later, channel), model.encode(images, channel)), "what is later is hidden"


def test_changing_a_value_changes_later_logits_only():
    """The whole order at once: channel, row, column, on the integers themselves."""
    model = build(channels=2, height=2, width=3, n_values=3)
    images = pictures(model.cfg, 1, seed=5)
    with torch.no_grad():
        before = model(images).view(12, 3)
        for position in range(12):
            other = images.flatten(1).clone()
            other[:, position] = (other[:, position] + 1) % 3
            changed = ((model(other.view(images.shape)).view(12, 3) - before) != 0).any(-1)
            assert not changed[: position + 1].any()
            assert changed[position + 1 :].all()


def test_probabilities_of_all_pictures_add_up_to_one():
    for channels in (1, 2):
        model = build(height=2, width=2, channels=channels, n_values=2)
        everything = torch.tensor(list(itertools.product((0, 1), repeat=4 * channels)))
        images = everything.view(-1, channels, 2, 2)
        with torch.no_grad():
            bits = model.bits_per_dimension(images) * 4 * channels
        assert (2.0**-bits).sum().item() == pytest.approx(1, abs=1e-6)
        assert bits.std() > 0.1, "they are not all alike"


@pytest.mark.parametrize(("channels", "n_values"), [(1, 2), (1, 16), (3, 256)])
def test_a_fresh_model_needs_log2_of_the_values(channels, n_values):
    torch.manual_seed(0)
    layers = 2 if channels > 1 else 0
    cfg = AxialImageConfig(
        height=5, width=6, channels=channels, n_values=n_values, dim=32, encoder_layers=layers
    )
    model = AxialImageModel(cfg).eval()
    with torch.no_grad():
        bits = model.bits_per_dimension(pictures(cfg))
    torch.testing.assert_close(bits, torch.full((2,), math.log2(n_values)), rtol=0, atol=0.01)
    assert model.embedding.weight.std().item() == pytest.approx(5 / math.sqrt(32), rel=0.2)


def test_the_loss_of_a_random_channel_is_unbiased():
    """Of every channel exactly, and of many draws within what chance allows."""
    model = build(channels=3, height=2, width=3, scale=1.0)
    images = pictures(model.cfg, 4)
    with torch.no_grad():
        whole = model.bits_per_dimension(images).mean().item() * math.log(2)
        by_channel = [
            torch.nn.functional.cross_entropy(
                model.channel_logits(images, s).flatten(0, -2), images[:, s].flatten()
            )
            for s in range(3)
        ]
        assert torch.stack(by_channel).mean().item() == pytest.approx(whole)
        generator = torch.Generator().manual_seed(0)
        draws = torch.stack([model.loss(images, generator) for _ in range(60)])
    assert draws.std() > 0.05 * whole
    assert abs(draws.mean().item() - whole) < 4 * draws.std().item() / math.sqrt(60)


def test_pictures_may_ask_for_different_channels():
    model = build(channels=3)
    images = pictures(model.cfg, 3)
    with torch.no_grad():
        mixed = model.channel_logits(images, torch.tensor([2, 0, 1]))
        for row, channel in enumerate((2, 0, 1)):
            torch.testing.assert_close(mixed[row], model.channel_logits(images, channel)[row])


def test_the_loss_has_a_gradient_for_every_weight():
    model = build(channels=2, height=2, width=3)
    model.loss(pictures(model.cfg, 8), torch.Generator().manual_seed(0)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_dropout_only_acts_in_training():
    torch.manual_seed(0)
    model = build(dropout=0.5)
    images = pictures(model.cfg)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
        model.train()
        assert not torch.equal(model(images), model(images))


def test_steps_refuse_to_go_out_of_turn():
    model = build(height=1, width=2)
    steps = model.start(None, 1)
    value = torch.tensor([1])
    with torch.no_grad():
        with pytest.raises(ValueError, match="no pixel waits"):
            steps.take(value)
        steps.logits()
        with pytest.raises(ValueError, match="`take` its value first"):
            steps.logits()
        steps.take(value)
        steps.logits()
        steps.take(value)
        with pytest.raises(ValueError, match="all 1 rows are finished"):
            steps.logits()


def test_the_published_shapes_are_legal():
    assert IMAGENET_32.image_shape == (3, 32, 32)
    assert (IMAGENET_64.dim, IMAGENET_64.n_values) == (2048, 256)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 6, "n_heads": 4}, "dim=6 must be a multiple of n_heads=4"),
        ({"outer_layers": 3}, "outer_layers=3 must be even.*use 2 or 4"),
        ({"channels": 3, "encoder_layers": 1}, "encoder_layers=1 must be even.*use 0 or 2"),
        ({"outer_layers": 0}, "hides the rows above"),
        ({"channels": 3, "encoder_layers": 0}, "several channels need an encoder"),
        ({"channels": 1, "encoder_layers": 2}, "one channel has nothing to encode"),
        ({"n_values": 1}, "n_values=1"),
        ({"inner_layers": 0}, "inner_layers=0"),
        ({"height": 0}, "height=0"),
        ({"embedding_scale": 0.0}, "embedding_scale=0.0"),
        ({"dropout": 1.5}, "dropout=1.5"),
    ],
)
def test_bad_configurations_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        build(**fields)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 1, 3, 4), TypeError, "images are torch.float32; they must be integers in 0 … 4"),
        (torch.full((1, 1, 3, 4), 5), ValueError, "values from 5 to 5; they must lie in 0 … 4"),
        (torch.full((1, 1, 3, 4), -1), ValueError, "from -1 to -1"),
        (torch.zeros(0, 1, 3, 4, dtype=torch.long), ValueError, "there is no picture"),
        (torch.zeros(1, 2, 3, 4, dtype=torch.long), ValueError, r"shape \(1, 2, 3, 4\).*\(batch, 1, 3, 4\)"),
        (torch.zeros(1, 1, 4, 3, dtype=torch.long), ValueError, r"wants \(batch, 1, 3, 4\)"),
    ],
)
def test_bad_images_are_named(images, error, message):
    model = build()
    for call in (model, model.loss, model.bits_per_dimension):
        with pytest.raises(error, match=message):
            call(images)


def test_bytes_are_good_images():
    model = build(n_values=256)
    images = pictures(model.cfg)
    images[0, 0, 0, 0] = 255
    with torch.no_grad():
        assert torch.equal(model.bits_per_dimension(images.to(torch.uint8)), model.bits_per_dimension(images))


def test_a_random_channel_needs_a_generator():
    model = build(channels=2)
    with pytest.raises(ValueError, match="needs a generator"):
        model.loss(pictures(model.cfg))
