"""Vision Mamba: published sizes, what it sees, how memory grows, other resolutions, weights of others."""

import dataclasses

import pytest
import torch

from shoestring.layers.parameter_hint import hinted_parameters
from shoestring.layers.patch_tokens import ClassToken
from shoestring.models.vision_mamba import VisionMamba
from shoestring.models.vision_mamba_config import (
    Direction,
    Pooling,
    Scan,
    VisionMambaConfig,
    vision_mamba_size,
)
from shoestring.models.vision_mamba_weights import (
    from_original,
    load_vision_mamba,
    resized,
    save_vision_mamba,
)
from shoestring.yardstick.causality import influence
from shoestring.yardstick.memory import LiveMemory


def small(**changes):
    torch.manual_seed(0)
    sizes = {
        "image_size": (16, 16),
        "patch_size": 4,
        "stride": 4,
        "dim": 8,
        "depth": 4,
        "n_classes": 5,
        "d_state": 4,
    }
    return VisionMamba(VisionMambaConfig(**sizes | changes)).eval()


@pytest.mark.parametrize(("name", "millions"), [("tiny", 7.15), ("small", 25.8), ("base", 98)])
def test_published_parameter_counts(name, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in VisionMamba(vision_mamba_size(name)).parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize("direction", list(Direction))
def test_which_patches_a_token_sees(direction):
    model = small(direction=direction, class_token=ClassToken.NONE, pooling=Pooling.MEAN).double()

    def blocks(x):
        hidden, residual = x[None], None
        for block in model.blocks:
            hidden, residual = block(hidden, residual)
        return (hidden + residual)[0]

    seen = influence(blocks, torch.randn(6, 8, dtype=torch.float64)) != 0
    everything = torch.ones(6, 6, dtype=torch.bool)
    assert torch.equal(seen, everything.tril() if direction is Direction.FORWARD else everything)


def test_a_middle_class_token_without_a_way_back_sees_half_of_the_picture():
    images = torch.randn(1, 3, 16, 16, requires_grad=True)
    for direction, share in ((Direction.FORWARD, 0.5), (Direction.BOTH, 1.0)):
        model = small(direction=direction)
        (grad,) = torch.autograd.grad(model(images).square().sum(), images)
        assert float((grad != 0).float().mean()) == pytest.approx(share)


@pytest.mark.parametrize("kind", list(ClassToken))
def test_every_layout_of_class_tokens(kind, tmp_path):
    pooling = Pooling.MEAN if kind is ClassToken.NONE else Pooling.TOKEN
    model = small(class_token=kind, pooling=pooling)
    images = torch.randn(2, 3, 16, 16)
    logits = model(images)
    assert logits.shape == (2, 5)
    encoded, slots = model.encode(images)
    chosen = encoded if kind is ClassToken.NONE else encoded[:, list(slots)]
    torch.testing.assert_close(logits, model.head(chosen.mean(1)))
    save_vision_mamba(model, tmp_path / "model")
    assert torch.equal(load_vision_mamba(tmp_path / "model").eval()(images), logits)


def test_rotary_positions_turn_patches_and_leave_the_class_token():
    plain, rotary = small(), small(rotary=True)
    rotary.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 16, 16)
    assert not torch.allclose(plain(images), rotary(images))
    sequence = rotary.tokens(images)
    turned = rotary._turned(sequence.tokens, sequence)
    assert torch.equal(turned[:, 8], sequence.tokens[:, 8])
    assert torch.equal(turned[:, 0], sequence.tokens[:, 0]), "row 0, column 0"
    assert not torch.allclose(turned[:, 9], sequence.tokens[:, 9])


def test_a_model_with_decays_by_head(tmp_path):
    model = small(scan=Scan.SSD, head_dim=8)
    images = torch.randn(2, 3, 16, 16)
    save_vision_mamba(model, tmp_path / "model")
    assert torch.equal(load_vision_mamba(tmp_path / "model").eval()(images), model(images))


def test_what_is_kept_for_the_gradient_grows_linearly_in_patches():
    def kept(side):
        model = small(image_size=(side, side), depth=2)
        images = torch.randn(1, 3, side, side)
        with LiveMemory(model, images) as memory:
            logits = model(images)
        assert logits.requires_grad
        return memory.dynamic_bytes

    assert 3.8 <= kept(256) / kept(128) <= 4.2


def test_another_resolution_and_a_smaller_stride():
    model = small()
    images = torch.randn(1, 3, 24, 32)
    at_once = model(images, interpolate=True)
    torch.testing.assert_close(resized(model, image_size=(24, 32))(images), at_once)
    finer = resized(model, image_size=(16, 16), stride=2)
    assert finer.tokens.grid == (7, 7)
    assert torch.equal(finer.blocks[1].mixer.in_proj.weight, model.blocks[1].mixer.in_proj.weight)
    middle = finer.tokens.positions[49 // 2]
    torch.testing.assert_close(middle, model.tokens.positions[16 // 2])


def test_features_are_maps_without_the_class_token():
    model = small()
    images = torch.randn(2, 3, 16, 24)
    maps = model.features(images, after=(0, 3), interpolate=True)
    assert [tuple(m.shape) for m in maps] == [(2, 8, 4, 6)] * 2
    encoded, slots = model.encode(images, interpolate=True)
    last = model.norm(maps[1].flatten(2).transpose(1, 2))
    torch.testing.assert_close(last[:, 0], encoded[:, 0])
    torch.testing.assert_close(last[:, slots[0] :], encoded[:, slots[0] + 1 :])


def test_weight_decay_and_initial_values():
    model = small()
    undecayed = {n for n, _, hint in hinted_parameters(model) if hint.weight_decay == 0}
    wanted = {
        n for n, _ in model.named_parameters() if n.endswith(("A_log", ".D", "norm.weight")) or "tokens" in n
    }
    assert undecayed == wanted - {n for n in wanted if "embedding" in n}
    deep = VisionMamba(dataclasses.replace(model.config, depth=16, dim=64))
    spread = deep.blocks[0].mixer.out_proj.weight.detach().abs().max()
    assert float(spread) == pytest.approx(128**-0.5 / 4, rel=0.02)


def test_drop_path_rises_with_depth_and_the_residual_is_float32():
    model = small(drop_path=0.3)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    model = small().bfloat16()
    hidden, residual = model.blocks[0](torch.randn(1, 5, 8).bfloat16(), None)
    assert (hidden.dtype, residual.dtype) == (torch.bfloat16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert small()(torch.randn(1, 3, 16, 16)).isfinite().all()


def test_a_training_step_lowers_the_loss():
    model = small().train()
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def original_weights(model):
    """The authors' names and shapes for the weights of a model of ours."""
    own = model.state_dict()
    found = {
        "patch_embed.proj.weight": own["tokens.embedding.projection.weight"],
        "patch_embed.proj.bias": own["tokens.embedding.projection.bias"],
        "pos_embed": own["tokens.positions"][None],
        "norm_f.weight": own["norm.weight"],
        "head.weight": own["head.weight"],
        "head.bias": own["head.bias"],
    }
    for number in range(len(model.blocks)):
        theirs, mine = f"layers.{number}", f"blocks.{number}"
        found[f"{theirs}.norm.weight"] = own[f"{mine}.norm.weight"]
        for name in ("in_proj", "out_proj"):
            found[f"{theirs}.mixer.{name}.weight"] = own[f"{mine}.mixer.{name}.weight"]
        for branch, mark in (("forwards", ""), ("backwards", "_b")):
            start = f"{mine}.mixer.{branch}"
            found[f"{theirs}.mixer.conv1d{mark}.weight"] = own[f"{start}.conv_weight"][:, None]
            found[f"{theirs}.mixer.conv1d{mark}.bias"] = own[f"{start}.conv_bias"]
            found[f"{theirs}.mixer.A{mark}_log"] = own[f"{start}.A_log"]
            found[f"{theirs}.mixer.D{mark}"] = own[f"{start}.D"]
            for name in ("x_proj.weight", "dt_proj.weight", "dt_proj.bias"):
                layer, kind = name.split(".")
                found[f"{theirs}.mixer.{layer}{mark}.{kind}"] = own[f"{start}.{name}"]
    return found


def test_weights_of_the_authors():
    model = small()
    weights = original_weights(model) | {"cls_token": model.tokens.class_tokens.detach()[None]}
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(from_original(weights, model.config).eval()(images), model(images))
    both = dataclasses.replace(model.config, class_token=ClassToken.BOTH_ENDS)
    with pytest.raises(ValueError, match="have cls_token, class_token='both ends' takes cls_token_head, "):
        from_original(weights, both)
    with pytest.raises(ValueError, match="head.bias is missing from the weights"):
        from_original({n: p for n, p in weights.items() if n != "head.bias"}, model.config)
    with pytest.raises(ValueError, match="direction='forward': the authors' checkpoints are of 'both'"):
        from_original(weights, dataclasses.replace(model.config, direction=Direction.FORWARD))


def test_bad_input(tmp_path):
    model = small()
    with pytest.raises(
        ValueError, match="images are 16 x 24, the model was built for 16 x 16; .* interpolate=True"
    ):
        model(torch.randn(1, 3, 16, 24))
    with pytest.raises(ValueError, match="width=18: patches of 4 at stride 4 do not fill it"):
        model(torch.randn(1, 3, 16, 18), interpolate=True)
    with pytest.raises(ValueError, match="images have 1 channels"):
        model(torch.randn(1, 1, 16, 16))
    with pytest.raises(ValueError, match="pooling='mean' with class_token='head'"):
        VisionMambaConfig(pooling=Pooling.MEAN, class_token=ClassToken.HEAD)
    with pytest.raises(ValueError, match="pooling='token' with class_token='none'"):
        VisionMambaConfig(class_token=ClassToken.NONE)
    with pytest.raises(ValueError, match="dim=6: rotary=True takes a multiple of 4"):
        VisionMambaConfig(dim=6, rotary=True)
    with pytest.raises(ValueError, match="depth=3: alternating directions take an even depth"):
        VisionMambaConfig(depth=3, direction=Direction.ALTERNATING)
    with pytest.raises(
        ValueError, match="for direction='both' with scan='selective', not 'forward' with 'selective'"
    ):
        VisionMambaConfig(direction=Direction.FORWARD, original_init=True)
    with pytest.raises(ValueError, match="scan='ssd' is for direction='both', not 'shared'"):
        VisionMambaConfig(direction=Direction.SHARED, scan=Scan.SSD)
    with pytest.raises(ValueError, match=r"after=\(0, 4\); there are blocks 0 to 3"):
        model.features(torch.randn(1, 3, 16, 16), after=(0, 4))
    with pytest.raises(ValueError, match="name='huge'; there are 'tiny', 'small', 'base'"):
        vision_mamba_size("huge")
    save_vision_mamba(model, tmp_path / "model")
    head = dataclasses.replace(model.config, class_token=ClassToken.HEAD)
    with pytest.raises(ValueError, match="a model with class_token=.*middle.*, this one has .*head"):
        load_vision_mamba(tmp_path / "model", head)
    decays_by_head = dataclasses.replace(model.config, scan=Scan.SSD, head_dim=8)
    with pytest.raises(ValueError, match="a model with scan=.*selective.*, this one has .*ssd"):
        load_vision_mamba(tmp_path / "model", decays_by_head)
    with pytest.raises(ValueError, match="scan='ssd': the authors' checkpoints are of 'selective'"):
        from_original({}, decays_by_head)
