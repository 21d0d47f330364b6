"""Transformers with cheaper parts: sizes, causality, and what becomes of a dense one."""

import pytest
import torch
from torch import nn

from shoestring.layers import LowRankEmbedding, LowRankLinear, LowRankSelfAttention, Sharing
from shoestring.layers.long_convolution import FeatureLongConv
from shoestring.models import TransformerEncoder, TransformerLM, TransformerOptions
from shoestring.models.transformer import LinformerOptions
from shoestring.yardstick.causality import leaks

SIZES = {"d_model": 24, "n_heads": 3, "n_layers": 2}


def test_a_dense_block_is_torchs_own():
    torch.manual_seed(0)
    for norm_first in (False, True):
        theirs = nn.TransformerEncoderLayer(
            24, 3, 96, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
        )
        ours = TransformerEncoder(TransformerOptions(**SIZES, norm_first=norm_first)).blocks[0]
        names = {
            "self_attn.in_proj_": "attention.qkv.", "self_attn.out_proj.": "attention.out.",
            "linear1.": "feed_forward.0.", "linear2.": "feed_forward.2.", "norm1.": "attention_norm.",
            "norm2.": "feed_forward_norm.",
        }  # fmt: skip
        state = {}
        for name, tensor in theirs.state_dict().items():
            prefix = next(p for p in names if name.startswith(p))
            state[names[prefix] + name.removeprefix(prefix)] = tensor
        ours.load_state_dict(state)
        x, mask = torch.randn(2, 6, 24), torch.arange(6) < torch.tensor([[6], [4]])
        expected = theirs(x, src_key_padding_mask=~mask)
        torch.testing.assert_close(ours(x, mask)[mask], expected[mask], rtol=1e-5, atol=1e-5)


def test_every_projection_is_thin():
    model = TransformerEncoder(TransformerOptions(**SIZES, rank=5))
    per_block = 4 * (5 * 48 + 24) + 5 * 120 + 96 + 5 * 120 + 24 + 4 * 24
    assert sum(p.numel() for p in model.parameters()) == 2 * per_block
    assert not any(type(m) is nn.Linear and min(m.weight.shape) > 15 for m in model.modules())
    assert all(isinstance(block.attention, LowRankSelfAttention) for block in model.blocks)


def test_linformer_blocks_share_as_they_are_told():
    def count(sharing: Sharing, rank: int | None = None) -> int:
        line = LinformerOptions(max_length=32, projected=8, sharing=sharing)
        model = TransformerEncoder(TransformerOptions(**SIZES, linformer=line, rank=rank))
        assert model(torch.randn(2, 20, 24)).shape == (2, 20, 24)
        return sum(p.numel() for p in model.parameters())

    dense = sum(p.numel() for p in TransformerEncoder(TransformerOptions(**SIZES)).parameters())
    assert count(Sharing.HEADWISE) == dense + 2 * 2 * 32 * 8
    assert count(Sharing.LAYERWISE) == dense + 32 * 8
    thin = sum(p.numel() for p in TransformerEncoder(TransformerOptions(**SIZES, rank=5)).parameters())
    assert count(Sharing.KEY_VALUE, 5) == thin + 2 * 32 * 8


@pytest.mark.parametrize("rank", [None, 5])
def test_the_language_model_is_causal_and_trains(rank):
    torch.manual_seed(0)
    model = TransformerLM(30, 16, TransformerOptions(**SIZES, rank=rank, norm_first=True))
    assert not leaks(lambda x: model.encoder.eval()(x[None])[0], torch.randn(7, 24)).any()
    ids = torch.randint(30, (4, 12))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_embedding_and_head_of_low_rank():
    model = TransformerLM(500, 16, TransformerOptions(**SIZES, rank=5), embedding_rank=6)
    assert isinstance(model.embedding, LowRankEmbedding)
    assert isinstance(model.head, LowRankLinear)
    full = TransformerLM(500, 16, TransformerOptions(**SIZES, rank=5))
    saved = sum(p.numel() for p in full.parameters()) - sum(p.numel() for p in model.parameters())
    assert saved == 2 * (500 * 24 - 6 * 524)
    assert model(torch.randint(500, (2, 16))).shape == (2, 16, 500)


@pytest.mark.parametrize("feed_forward", [None, FeatureLongConv])
def test_any_layer_may_feed_forward_and_the_table_be_the_head(feed_forward):
    torch.manual_seed(0)
    options = TransformerOptions(**SIZES, norm_first=True, feed_forward=feed_forward)
    model = TransformerLM(11, 6, options, tied=True)
    assert model.head.weight is model.embedding.weight
    ids = torch.randint(11, (3, 6))
    logits = model(ids)
    changed = ids.clone()
    changed[:, 4] = (ids[:, 4] + 1) % 11
    torch.testing.assert_close(model(changed)[:, :4], logits[:, :4])
    assert (model(changed)[:, 4:] - logits[:, 4:]).abs().min() > 0
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_narrow_network_is_as_wide_as_it_is_told():
    block = TransformerEncoder(TransformerOptions(**SIZES, d_ff=5)).blocks[0]
    assert block.feed_forward[0].weight.shape == (5, 24)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="a sequence of 17 tokens is longer than max_length=16"):
        TransformerLM(30, 16, TransformerOptions(**SIZES))(torch.zeros(1, 17, dtype=torch.int64))
    line = LinformerOptions(max_length=16, projected=4)
    with pytest.raises(ValueError, match="causal=True: Linformer"):
        TransformerLM(30, 16, TransformerOptions(**SIZES, linformer=line))
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        TransformerEncoder(TransformerOptions(**SIZES, rank=0))
    for name in ("d_model", "n_layers", "d_ff"):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            TransformerOptions(**SIZES | {name: 0})
    with pytest.raises(ValueError, match="max_length=0 must be at least 1"):
        TransformerLM(30, 0, TransformerOptions(**SIZES))
    with pytest.raises(ValueError, match="embedding_rank=6 has a head of its own; use tied=False"):
        TransformerLM(30, 16, TransformerOptions(**SIZES), embedding_rank=6, tied=True)
