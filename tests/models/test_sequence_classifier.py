import pytest
import torch
from torch import nn

from shoestring.models.sequence_classifier import SequenceClassifier

SIZES = {"d_input": 3, "d_model": 8, "n_layers": 2, "n_classes": 5}


@pytest.mark.parametrize("prenorm", [True, False])
@pytest.mark.parametrize("norm", ["layer", "batch", "scale"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_shapes_and_gradients(prenorm, norm, pooling):
    model = SequenceClassifier(
        lambda d: nn.Linear(d, d), **SIZES, prenorm=prenorm, norm=norm, pooling=pooling, dropout=0.1
    )
    logits = model(torch.randn(4, 7, 3))
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("prenorm", [True, False])
def test_equals_its_equation(prenorm):
    model = SequenceClassifier(lambda d: nn.Linear(d, d), **SIZES, prenorm=prenorm).eval()
    x = torch.randn(2, 6, 3)
    h = model.encoder(x)
    for block in model.blocks:
        h = h + block.layer(block.norm(h)) if prenorm else block.norm(h + block.layer(h))
    expected = model.head((model.norm(h) if prenorm else h).mean(1))
    torch.testing.assert_close(model(x), expected)


def test_batch_norm_is_over_batch_and_time():
    model = SequenceClassifier(
        lambda d: nn.Identity(), **SIZES | {"n_layers": 1}, norm="batch", prenorm=False
    )
    seen = []
    model.blocks[0].norm.register_forward_hook(lambda _, args, out: seen.append(out))
    model(torch.randn(4, 50, 3))
    torch.testing.assert_close(seen[0].mean((0, 1)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].var((0, 1), correction=0), torch.ones(8), atol=1e-3, rtol=0)


def test_token_ids():
    model = SequenceClassifier(lambda d: nn.Linear(d, d), **SIZES, embedding=True, pooling="last")
    ids = torch.tensor([[0, 1, 2], [2, 1, 0]])
    assert model(ids).shape == (2, 5)
    changed = ids.clone()
    changed[:, 0] = 1
    torch.testing.assert_close(model(changed), model(ids))
    with pytest.raises(ValueError, match=r"give token ids \(batch, seq\)"):
        model(torch.randn(2, 3))


def test_bad_input():
    with pytest.raises(ValueError, match="n_layers=0 must be at least 1"):
        SequenceClassifier(nn.Identity, **SIZES | {"n_layers": 0})
    with pytest.raises(ValueError, match="norm='group'; use one of 'layer', 'batch', 'scale'"):
        SequenceClassifier(nn.Identity, **SIZES, norm="group")
    with pytest.raises(ValueError, match="pooling='max'; use one of 'mean', 'last'"):
        SequenceClassifier(nn.Identity, **SIZES, pooling="max")
    model = SequenceClassifier(lambda d: nn.Linear(d, d), **SIZES)
    with pytest.raises(ValueError, match=r"x has shape \(2, 7, 4\); give \(batch, seq, 3\)"):
        model(torch.randn(2, 7, 4))
    with pytest.raises(ValueError, match="no steps"):
        model(torch.randn(2, 0, 3))
