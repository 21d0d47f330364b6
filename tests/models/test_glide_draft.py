"""The Glide layer: lagged cross-attention, and its checkpoint in int8."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import BadModelFile
from shoestring.layers.attention_masks import KVView
from shoestring.models.decoder import Decoder
from shoestring.models.glide_checkpoint import load_glide, save_glide
from shoestring.models.glide_draft import (
    GlideDraft,
    GlideOptions,
    lagged_attention,
    naive_lagged_attention,
)
from shoestring.models.int8_rows import rows_to_int8

from .families import make


@given(n=st.integers(1, 13), lag=st.integers(0, 6), seed=st.integers(0, 10**6))
def test_lagged_attention_is_the_masked_one_forward_and_backward(n, lag, seed):
    generator = torch.Generator().manual_seed(seed)
    given_ = [
        torch.randn(2, heads, n, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (6, 2, 2)
    ]
    weight = torch.randn(2, 6, n, 4, generator=generator, dtype=torch.float64)
    found, expected = (way(*given_, lag) for way in (lagged_attention, naive_lagged_attention))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert not found[:, :, :lag].any()
    if lag < n:
        one, other = (torch.autograd.grad((out * weight).sum(), given_) for out in (found, expected))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def target():
    return Decoder.from_transformers(make()).requires_grad_(False)


@pytest.mark.parametrize("lag", [1, 3])
def test_no_token_sees_what_the_target_has_not_read(target, lag):
    draft = GlideDraft(target.cfg, GlideOptions(4)).draw_weights(torch.Generator().manual_seed(0), 0.3)
    generator = torch.Generator().manual_seed(1)
    x, k, v = (
        torch.randn(shape, generator=generator) for shape in ((1, 9, 48), (1, 2, 9, 16), (1, 2, 9, 16))
    )
    pos, later = torch.arange(9)[None], torch.randn(1, 2, 9, 16, generator=generator)
    before = draft(x, pos, KVView(k, v, pos[:, None]), lag)
    cut = 5
    k, v = (torch.cat([t[:, :, : cut - lag + 1], later[:, :, cut - lag + 1 :]], 2) for t in (k, v))
    after = draft(x, pos, KVView(k, v, pos[:, None]), lag)
    assert torch.equal(before[:, : cut + 1], after[:, : cut + 1])
    assert not torch.equal(before[:, cut + 1 :], after[:, cut + 1 :])


def test_a_copy_of_the_last_layer_starts_from_the_targets_weights(target):
    draft = GlideDraft(target.cfg).copy_last_layer(target)
    assert torch.equal(draft.up_proj.weight, target.model.layers[3].mlp.up_proj.weight)
    assert torch.equal(2 * draft.cross_o_proj.weight, target.model.layers[3].self_attn.o_proj.weight)
    assert not draft.cross_q_proj.bias.any()


def test_a_checkpoint_comes_back_to_half_a_step(target, tmp_path):
    draft = GlideDraft(target.cfg, GlideOptions(33)).draw_weights(torch.Generator().manual_seed(0))
    save_glide(draft, tmp_path / "draft")
    again = load_glide(tmp_path / "draft", target)
    assert again.options == draft.options
    for (name, one), other in zip(draft.state_dict().items(), again.state_dict().values(), strict=True):
        step = rows_to_int8(one)[1][:, None] if one.dim() == 2 else torch.zeros(1)
        assert bool(((one - other).abs() <= 0.501 * step).all()), name
    size = sum(p.numel() for p in draft.parameters())
    assert (tmp_path / "draft" / "draft.safetensors").stat().st_size < 1.6 * size


def test_a_folder_of_another_model_is_refused(target, tmp_path):
    save_glide(GlideDraft(Decoder.from_transformers(make("llama, tied")).cfg), tmp_path / "draft")
    with pytest.raises(BadModelFile, match="does not fit this target"):
        load_glide(tmp_path / "draft", target)
    with pytest.raises(ValueError, match="window=0"):
        GlideOptions(0)
