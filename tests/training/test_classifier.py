import pytest
import torch
from torch import nn

from shoestring.data.digits import load_digits
from shoestring.models.conv_nets import PlainConvNet
from shoestring.training.classifier import Schedule, as_tensors, cached_classifier, hits, train_classifier

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return as_tensors(data.train), as_tensors(data.test)


def build():
    return PlainConvNet(8)


def test_pictures_become_tensors(digits):
    (images, labels), _ = digits
    assert images.shape == (1437, 1, 8, 8)
    assert images.dtype == torch.float32
    assert images.min() == 0
    assert images.max() == 1
    assert labels.dtype == torch.int64


def test_it_learns_and_the_seed_decides_the_weights(digits):
    train, test = digits
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        models.append(build())
        train_classifier(models[-1], *train, Schedule(60, seed=seed))
    a, b, c = (model.head[0].weight for model in models)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not models[0].training
    assert float(hits(models[0], *test).float().mean()) > 0.6


def test_the_cache_gives_back_the_same_model_and_trains_once(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    train, _ = digits
    before = torch.get_rng_state()
    first = cached_classifier("digits", build, *train, Schedule(3))
    assert torch.equal(torch.get_rng_state(), before)

    def refuse(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr("shoestring.training.classifier.train_classifier", refuse)
    second = cached_classifier("digits", build, *train, Schedule(3))
    assert all(torch.equal(p, second.state_dict()[name]) for name, p in first.state_dict().items())
    assert not second.training
    for schedule in (Schedule(4), Schedule(3, seed=1), Schedule(3, lr=0.5)):
        with pytest.raises(AssertionError, match="trained again"):
            cached_classifier("digits", build, *train, schedule)


def test_hits_count_right_answers_and_no_nans():
    class Table(nn.Module):
        def forward(self, x):
            return x.flatten(1)

    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [float("nan"), 0.0], [5.0, 1.0]]).view(4, 1, 1, 2)
    labels = torch.tensor([0, 0, 0, 0])
    assert hits(Table(), logits, labels, batch_size=3).tolist() == [True, False, False, True]


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="steps=0"):
        Schedule(0)
