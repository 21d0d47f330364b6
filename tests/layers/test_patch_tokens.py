"""Pictures as sequences: patches in order, class tokens in their places, positions of another grid."""

import pytest
import torch
from torch.nn import functional as F

from shoestring.layers.drop_path import DropPath, depth_rates
from shoestring.layers.feature_pyramid import FeaturePyramid
from shoestring.layers.parameter_hint import hinted_parameters
from shoestring.layers.patch_embedding import PatchEmbedding, interpolate_positions
from shoestring.layers.patch_tokens import ClassToken, PatchTokens, place, without


def test_patches_go_row_by_row():
    embedding = PatchEmbedding(1, 1, 4)
    with torch.no_grad():
        embedding.projection.weight.fill_(1 / 16)
    images = torch.arange(6.0).reshape(1, 1, 2, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(embedding(images)[0, :, 0], torch.arange(6.0))
    assert embedding.grid(8, 12) == (2, 3)


def test_overlapping_patches():
    embedding = PatchEmbedding(3, 5, 16, 8)
    assert embedding.grid(224, 224) == (27, 27)
    assert embedding(torch.randn(2, 3, 32, 40)).shape == (2, 3 * 4, 5)
    std = PatchEmbedding(3, 500, 16).projection.weight.detach().std()
    assert float(std) == pytest.approx((3 * 256) ** -0.5, rel=0.02)


@pytest.mark.parametrize("kind", list(ClassToken))
@pytest.mark.parametrize("patches", [1, 4, 7])
def test_class_tokens_stand_in_their_places(kind, patches):
    slots = kind.slots(patches)
    tokens = -torch.arange(1.0, len(slots) + 1).reshape(1, -1, 1)
    row = torch.arange(float(patches)).reshape(1, -1, 1)
    placed = place(tokens, row, slots)
    assert torch.equal(placed[:, list(slots)], tokens)
    assert torch.equal(without(placed, slots), row)
    expected = {"middle": (patches // 2,), "head": (0,), "both ends": (0, patches + 1), "none": ()}
    assert slots == expected.get(kind.value, (patches // 2,))


def test_positions_of_another_grid_leave_the_middle_token_out():
    """Row J // 2 is the class token's: taking row 0 for it would shift half of the picture by one patch."""
    plane = torch.arange(4.0)[:, None] * 10 + torch.arange(6.0)
    token = torch.tensor([-1000.0])
    positions = torch.cat([plane.flatten()[:12], token, plane.flatten()[12:]])[:, None]
    found = interpolate_positions(positions, (4, 6), (8, 12), (12,))
    assert found[0] == token
    right = F.interpolate(plane[None, None], (8, 12), mode="bicubic", align_corners=False)
    torch.testing.assert_close(found[1:].reshape(8, 12), right[0, 0])
    same = interpolate_positions(positions, (4, 6), (4, 6), (12,))
    assert torch.equal(same[1:].reshape(4, 6), plane)


@pytest.mark.parametrize("kind", list(ClassToken))
def test_a_sequence_of_patches_tokens_and_positions(kind):
    torch.manual_seed(0)
    layer = PatchTokens((16, 16), PatchEmbedding(3, 5, 4), kind).eval()
    images = torch.randn(2, 3, 16, 16)
    tokens, slots, grid = layer(images)
    assert grid == (4, 4)
    patches = layer.embedding(images) + without(layer.positions[None], slots)
    torch.testing.assert_close(without(tokens, slots), patches)
    torch.testing.assert_close(
        tokens[0, list(slots)], layer.class_tokens + layer.positions[list(slots)], rtol=0, atol=0
    )
    larger = layer(torch.randn(1, 3, 24, 32), interpolate=True)
    assert larger.tokens.shape == (1, 48 + len(slots), 5)
    assert larger.grid == (6, 8)
    assert {n for n, _, hint in hinted_parameters(layer) if hint.weight_decay == 0} == {
        "class_tokens",
        "positions",
    }


def test_a_random_place_is_drawn_in_training_only():
    torch.manual_seed(0)
    layer = PatchTokens((16, 16), PatchEmbedding(1, 2, 4), ClassToken.RANDOM)
    images = torch.randn(1, 1, 16, 16)
    assert len({layer(images).slots for _ in range(30)}) > 5
    assert {layer.eval()(images).slots for _ in range(5)} == {(8,)}


def test_drop_path():
    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.ones(4000, 3, 2)
    y = layer(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y.amax((1, 2)) == y.amin((1, 2))).all(), "a sample is kept or dropped whole"
    assert float(y.mean()) == pytest.approx(1, abs=0.05)
    assert layer.eval()(x) is x
    assert depth_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert depth_rates(0.3, 1) == [0]


def test_feature_pyramid():
    maps = [torch.randn(2, 8, 4, 6) for _ in range(4)]
    pyramid = FeaturePyramid(8).eval()
    assert [tuple(m.shape[2:]) for m in pyramid(maps)] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert pyramid(maps)[2] is maps[2]
    with pytest.raises(ValueError, match="3 maps; a pyramid takes 4"):
        pyramid(maps[:3])


def test_bad_input():
    with pytest.raises(ValueError, match="stride=5 must be 1 to patch_size=4"):
        PatchEmbedding(3, 5, 4, 5)
    embedding = PatchEmbedding(3, 5, 16)
    with pytest.raises(
        ValueError, match="height=30: patches of 16 at stride 16 do not fill it; use 16 or 32"
    ):
        embedding(torch.randn(1, 3, 30, 32))
    with pytest.raises(ValueError, match="images have 1 channels, the patch embedding 3"):
        embedding(torch.randn(1, 1, 32, 32))
    layer = PatchTokens((32, 32), embedding, ClassToken.MIDDLE)
    with pytest.raises(ValueError, match="images are 48 x 32, the model was built for 32 x 32"):
        layer(torch.randn(1, 3, 48, 32))
    with pytest.raises(ValueError, match="positions has 5 rows; a grid of 2 x 3 and 1 class tokens take 7"):
        interpolate_positions(torch.zeros(5, 2), (2, 3), (4, 6), (3,))
    with pytest.raises(ValueError, match="rate=1.0 must be"):
        DropPath(1.0)
