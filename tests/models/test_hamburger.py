"""The parts of a HAMburger, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.models.hamburger import Hamburger, MergeEmbedder, naive_merge
from shoestring.models.hamburger_options import (
    HamburgerOptions,
    check_confidence,
    check_groups,
    even_features,
    stops,
)

from .tiny_hamburger import tiny_base, tiny_hamburger


def embedder(hidden=16, steps=4, head=4, seed=0):
    torch.manual_seed(seed)
    return MergeEmbedder(hidden, steps, head).double()


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=7),
    hidden=st.sampled_from([2, 6, 16]),
    seed=st.integers(0, 99),
)
def test_merging_all_groups_at_once_equals_one_by_one(sizes, hidden, seed):
    module = embedder(hidden, 5, hidden // 2, seed)
    x = torch.randn(len(sizes), 5, hidden, dtype=torch.float64, requires_grad=True)
    fast = module(x, torch.tensor(sizes))
    slow = torch.stack([naive_merge(module, x[i, :size]) for i, size in enumerate(sizes)])
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    weight, wanted = torch.randn_like(fast), [x, module.q_proj.weight, module.v_proj.weight, module.places]
    grads = [
        torch.autograd.grad((out * weight).sum(), wanted, allow_unused=True, materialize_grads=True)
        for out in (fast, slow)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_one_token_is_left_as_it_is():
    x = torch.randn(3, 4, 16, dtype=torch.float64)
    assert torch.equal(embedder()(x, torch.ones(3, dtype=torch.long)), x[:, 0])


def test_the_order_inside_a_group_matters():
    module, x = embedder(), torch.randn(1, 4, 16, dtype=torch.float64)
    size = torch.tensor([4])
    assert (module(x, size) - module(x[:, [1, 0, 3, 2]], size)).abs().max() > 1e-3


def test_without_places_and_output_the_merge_is_the_mean():
    module, x = embedder(), torch.randn(1, 3, 16, dtype=torch.float64)
    for parameter in (module.places, module.o_proj.weight, module.o_proj.bias):
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(module(x, torch.tensor([3])), x.mean(1), rtol=1e-14, atol=1e-14)


def test_padding_of_a_group_may_be_anything():
    module, x = embedder(), torch.randn(1, 4, 16, dtype=torch.float64)
    spoiled = x.clone()
    spoiled[:, 2:] = torch.nan
    assert torch.equal(module(x, torch.tensor([2])), module(spoiled, torch.tensor([2])))


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [(16, 4, (3, 7, 11, 15)), (30, 4, (7, 14, 22, 29)), (6, 3, (1, 3, 5)), (1, 1, (0,))],
)
def test_features_are_evenly_spaced(layers, count, expected):
    assert even_features(layers, count) == expected


def test_the_last_feature_is_normalised_and_the_others_are_not():
    model = tiny_hamburger()
    assert model.want == (0, "norm")
    ids = torch.tensor([[3, 4, 5]])
    states = model.read(ids, None, None)
    assert torch.equal(model.base.lm_head(states[:, :, -1]), model.base(ids).logits)


def test_the_copied_micro_decoder_is_the_base_s_end():
    base = tiny_base()
    model = Hamburger(base, HamburgerOptions((0, 2), micro_layers=2, merge_head_size=8, output_norm=True))
    model.draw_weights(torch.Generator().manual_seed(0), from_base=True)
    x = torch.randn(2, 5, 32)
    expected = model.micro(x)
    for own, theirs in zip(model.micro.layers, base.model.layers[1:], strict=True):
        for one, other in zip(own.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(model.micro.norm.weight, base.model.norm.weight)
    assert x.shape == expected.shape


@given(logit=st.floats(-40, 40), confidence=st.floats(0, 1.01))
def test_a_group_stops_where_going_on_is_not_trusted(logit, confidence):
    # Where the two are about equal, rounding may say either.
    p_stop = 1 / (1 + math.exp(-logit))
    if abs(1 - p_stop - confidence) > 1e-9:
        assert stops(logit, confidence) == (1 - p_stop < confidence)
    assert stops(logit, None) == (logit > 0)


@pytest.mark.parametrize("logit", [-1e6, -40.0, 0.0, 40.0, 1e6])
def test_the_extremes_of_confidence_do_not_depend_on_the_stop_head(logit):
    assert stops(logit, 1.01)
    assert not stops(logit, 0.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_steps": 0}, "max_steps=0"),
        ({"micro_layers": 0}, "micro_layers=0"),
        ({"features": ()}, "at least one layer"),
        ({"features": (-1, 2)}, "counted from 0"),
        ({"features": (1, 1)}, "repeats a layer"),
        ({"features": (2, 1)}, "must ascend"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        HamburgerOptions(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (HamburgerOptions((0, 3), merge_head_size=8), "must be 2"),
        (HamburgerOptions((0, 1), merge_head_size=8), "must be 2"),
        (HamburgerOptions((0, 2), merge_head_size=5), "multiple of merge_head_size=5"),
    ],
)
def test_options_that_do_not_fit_the_base_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Hamburger(tiny_base(), options)


@pytest.mark.parametrize("confidence", [-0.1, 1.02, float("nan")])
def test_confidence_out_of_range_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence="):
        check_confidence(confidence)
    with pytest.raises(ValueError, match="confidence="):
        tiny_hamburger().confidence = confidence


@pytest.mark.parametrize(
    ("sizes", "said"), [([2, 2], "sum to 4"), ([5], "5 tokens; groups"), ([0, 5], "0 tokens; groups")]
)
def test_groups_that_do_not_fit_are_refused(sizes, said):
    with pytest.raises(ValueError, match=f"sample 3: .*{said}"):
        check_groups(sizes, 5, 4, "sample 3")


def test_features_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="7 features of 6 layers"):
        even_features(6, 7)
