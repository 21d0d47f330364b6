import pytest
import torch
from torch import nn

from shoestring.layers.long_convolution.long_convolution import FeatureLongConv
from shoestring.models.token_transformer import MLP, CausalSelfAttention, TokenTransformer


@pytest.mark.parametrize("feed_forward", [None, FeatureLongConv, lambda width: MLP(width, 5)])
def test_shapes_causality_and_gradients(feed_forward):
    model = TokenTransformer(11, d_model=8, n_layers=2, n_heads=2, context=6, feed_forward=feed_forward)
    ids = torch.randint(11, (3, 6))
    logits = model(ids)
    assert logits.shape == (3, 6, 11)
    changed = ids.clone()
    changed[:, 4] = (ids[:, 4] + 1) % 11
    torch.testing.assert_close(model(changed)[:, :4], logits[:, :4])
    assert (model(changed)[:, 4:] - logits[:, 4:]).abs().min() > 0
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_attention_equals_its_equation():
    layer, x = CausalSelfAttention(6, 3), torch.randn(2, 5, 6)
    q, k, v = layer.inputs(x).chunk(3, dim=-1)
    heads = []
    for h in range(3):
        one = slice(2 * h, 2 * h + 2)
        scores = q[..., one] @ k[..., one].mT / 2**0.5
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(-1) @ v[..., one])
    torch.testing.assert_close(layer(x), layer.output(torch.cat(heads, dim=-1)))


def test_bad_input():
    with pytest.raises(ValueError, match="n_layers=0 must be at least 1"):
        TokenTransformer(5, n_layers=0)
    with pytest.raises(ValueError, match="d_model=10 is not divided by n_heads=4"):
        TokenTransformer(5, d_model=10)
    with pytest.raises(ValueError, match="hidden=0 must be at least 1"):
        MLP(4, 0)
    model = TokenTransformer(5, d_model=4, n_layers=1, n_heads=1, context=3, feed_forward=nn.Identity)
    with pytest.raises(ValueError, match="4 tokens, the model a context of 3"):
        model(torch.zeros(1, 4, dtype=torch.long))
