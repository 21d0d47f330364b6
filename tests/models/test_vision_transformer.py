"""The plain vision transformer: two forms of attention, sizes, resolutions."""

import pytest
import torch

from shoestring.layers.parameter_hint import hinted_parameters
from shoestring.models.vision_transformer import (
    VisionTransformer,
    VisionTransformerConfig,
    explicit_attention,
    fused_attention,
)


def test_published_parameter_count():
    with torch.device("meta"):
        count = sum(p.numel() for p in VisionTransformer(VisionTransformerConfig()).parameters())
    assert count == pytest.approx(5.7e6, rel=0.01)


def test_both_forms_of_attention_agree():
    torch.manual_seed(0)
    config = VisionTransformerConfig(image_size=(16, 16), patch_size=4, dim=12, depth=2, n_classes=5)
    fused, explicit = (
        VisionTransformer(config, form).double() for form in (fused_attention, explicit_attention)
    )
    explicit.load_state_dict(fused.state_dict())
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(fused(images, interpolate=True), explicit(images, interpolate=True))
    assert fused.encode(images, interpolate=True).shape == (2, 25, 12)


def test_against_torch_own_encoder_layer():
    torch.manual_seed(0)
    config = VisionTransformerConfig(image_size=(16, 16), patch_size=4, dim=12, depth=1, heads=3)
    block = VisionTransformer(config).blocks[0].double()
    theirs = torch.nn.TransformerEncoderLayer(
        12, 3, 48, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True, dtype=torch.float64
    )
    theirs.load_state_dict({
        "self_attn.in_proj_weight": block.qkv.weight, "self_attn.in_proj_bias": block.qkv.bias,
        "self_attn.out_proj.weight": block.out.weight, "self_attn.out_proj.bias": block.out.bias,
        "linear1.weight": block.mlp[0].weight, "linear1.bias": block.mlp[0].bias,
        "linear2.weight": block.mlp[2].weight, "linear2.bias": block.mlp[2].bias,
        "norm1.weight": block.norm1.weight, "norm1.bias": block.norm1.bias,
        "norm2.weight": block.norm2.weight, "norm2.bias": block.norm2.bias,
    })  # fmt: skip
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(block(x), theirs(x))


def test_norms_and_positions_ask_for_no_weight_decay():
    model = VisionTransformer(VisionTransformerConfig(image_size=(16, 16), dim=12, depth=1))
    undecayed = {n for n, _, hint in hinted_parameters(model) if hint.weight_decay == 0}
    assert undecayed == {
        n
        for n, _ in model.named_parameters()
        if "norm" in n or n in ("tokens.class_tokens", "tokens.positions")
    }


def test_bad_input():
    with pytest.raises(ValueError, match="heads=5 do not divide dim=192"):
        VisionTransformerConfig(heads=5)
    with pytest.raises(ValueError, match="depth=0 must be at least 1"):
        VisionTransformerConfig(depth=0)
