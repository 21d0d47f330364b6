"""Compress, run, extract: what is skipped costs nothing and changes nothing."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoestring.layers.seqboat.compression_index import (
    CompressedPlaces,
    naive_compress,
    naive_compression_index,
    naive_extract,
)
from shoestring.layers.seqboat.sparse_modular_activation import (
    Decision,
    Router,
    RouterOptions,
    SparseModularActivation,
    naive_run_where_active,
    run_where_active,
)

masks = st.sampled_from(["none", "all", "one", "ragged", "one sample", "even"])


def drawn(kind, batch, seq):
    active = torch.zeros(batch, seq, dtype=torch.bool)
    if kind == "all":
        active[:] = True
    elif kind == "one":
        active[-1, seq // 2] = True
    elif kind == "ragged":
        active = torch.rand(batch, seq) < torch.rand(batch, 1)
    elif kind == "one sample":
        active[0] = True
    elif kind == "even":
        active[:, ::2] = True
    return active


@given(kind=masks, batch=st.integers(1, 4), seq=st.sampled_from([1, 2, 7, 13]), seed=st.integers(0, 99))
def test_compress_and_extract_equal_the_equations(kind, batch, seq, seed):
    torch.manual_seed(seed)
    active = drawn(kind, batch, seq)
    x = torch.randn(batch, seq, 3, dtype=torch.float64, requires_grad=True)
    places = CompressedPlaces(active)
    small = places.compress(x)
    assert torch.equal(small, naive_compress(x, active))
    back = places.extract(small)
    assert torch.equal(back, torch.where(active[..., None], x, 0.0))
    h = torch.randn_like(small, requires_grad=True)
    assert torch.equal(places.extract(h), naive_extract(h, active))
    assert torch.equal(places.counts, naive_compression_index(active).amax(1))
    assert torch.equal(places.filled.sum(1), places.counts)
    original = places.compress(torch.arange(seq).expand(batch, -1)[..., None].double())[..., 0]
    assert torch.equal(original[places.filled], places.positions[places.filled].double())
    torch.autograd.gradcheck(places.compress, (x,))
    torch.autograd.gradcheck(places.extract, (h,))
    torch.autograd.gradgradcheck(places.compress, (x,))


@given(kind=masks, batch=st.integers(1, 3), seq=st.sampled_from([1, 5, 8]), seed=st.integers(0, 99))
def test_a_module_runs_on_the_active_tokens_alone(kind, batch, seq, seed):
    torch.manual_seed(seed)
    active = drawn(kind, batch, seq)
    module = nn.Linear(3, 2).double()
    x = torch.randn(batch, seq, 3, dtype=torch.float64)
    decision = Decision(active, torch.rand(batch, seq, 1, dtype=torch.float64) * active[..., None])
    fast = run_where_active(lambda h, _: module(h), x, decision)
    torch.testing.assert_close(fast, naive_run_where_active(module, x, decision))
    assert fast.masked_select(~active[..., None]).eq(0).all()


def test_the_gradient_of_the_confidence_is_the_output():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3)
    active = torch.tensor([[True, False, True, True, False], [False, True, False, False, False]])
    confidence = torch.rand(2, 5, 1, requires_grad=True)
    module = nn.Linear(3, 3)
    out = run_where_active(lambda h, _: module(h), x, Decision(active, confidence))
    upstream = torch.randn_like(out)
    (grad,) = torch.autograd.grad((out * upstream).sum(), confidence)
    expected = (module(x) * upstream).sum(-1) * active
    torch.testing.assert_close(grad[..., 0], expected)
    assert grad[~active].eq(0).all()


def test_router_takes_the_larger_of_two_at_a_trained_temperature():
    router = Router(16, RouterOptions(init_temperature_scale=0.5)).double()
    assert router.temperature.exp().item() == pytest.approx(0.5 * 4)
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [-3.0, 5.0]]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    decision = router(logits, mask)
    assert decision.active.tolist() == [[True, False, False, False]]
    assert decision.confidence[0, 0, 0].item() == pytest.approx(torch.sigmoid(torch.tensor(0.5)).item())
    assert decision.confidence[0, 1:].eq(0).all()
    assert router.activity == pytest.approx(1 / 3)
    half = Router(16)(logits.bfloat16())
    assert half.confidence.dtype == torch.float32


def test_finite_differences_of_the_logits():
    torch.manual_seed(0)
    router = Router(4).double()
    logits = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(1, 6, 3, dtype=torch.float64)

    def loss(u):
        return run_where_active(lambda h, _: h.sin(), x, router(u))

    assert torch.autograd.gradcheck(loss, (logits,))
    active = router(logits).active
    (grad,) = torch.autograd.grad(loss(logits).sum(), logits)
    assert grad[active].ne(0).all()
    assert grad[~active].eq(0).all()


def test_in_the_warm_up_every_token_runs_and_teaches():
    router = Router(4, RouterOptions(warmup=2))
    logits = torch.tensor([[[3.0, -1.0], [0.0, 1.0]]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    decision = router(logits, mask)
    assert decision.active.tolist() == [[True, False]]
    expected = torch.softmax(logits[0, 0] / 2, -1)[1]
    assert decision.confidence[0, 0, 0].item() == pytest.approx(expected.item())
    (grad,) = torch.autograd.grad(decision.confidence.sum(), logits)
    assert grad[0, 0].ne(0).all()
    router.eval()
    assert not router(logits).active[0, 0], "evaluation is by the rule"
    router.train()
    assert router(logits).active[0, 0]
    again = Router(4, RouterOptions(warmup=2))
    again.load_state_dict(router.state_dict())
    for each in (router, again):
        assert not each(logits).active[0, 0], "over, after a reload as well"


def passes(router, batch, count):
    for _ in range(count):
        router(batch)


def test_a_router_that_falls_silent_or_runs_all_says_so_once():
    for logits, text in (
        (torch.tensor([1.0, 0.0]), "silent"),
        (torch.tensor([0.0, 1.0]), "nothing is saved"),
    ):
        router, batch = Router(4), logits.expand(1, 10, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            passes(router, batch, 100)
        with pytest.warns(UserWarning, match=text):
            passes(router, batch, 150)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            passes(router, batch, 10)
        assert router.recent_activity == pytest.approx(round(router.recent_activity), abs=0.01)


def test_several_modules_add_up_each_with_its_own_tokens():
    torch.manual_seed(0)
    modules = [nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))]
    layer = SparseModularActivation(modules, 4)
    x, logits = torch.randn(2, 7, 4), torch.randn(2, 7, 4)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 5:] = False
    expected = torch.zeros(2, 7, 3)
    for number, module in enumerate(modules):
        pair = torch.softmax(logits[..., 2 * number : 2 * number + 2] / 2, -1)
        runs = (pair[..., 1] > pair[..., 0]) & mask
        expected += module(x) * (pair[..., 1] * runs)[..., None]
    torch.testing.assert_close(layer(x, logits, mask), expected)


def test_bad_input():
    with pytest.raises(ValueError, match="logits have 3 options; a router has 2"):
        Router(4)(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="init_temperature_scale=-1.0 must be above 0"):
        RouterOptions(init_temperature_scale=-1.0)
    with pytest.raises(ValueError, match="warmup=-1"):
        RouterOptions(warmup=-1)
    with pytest.raises(ValueError, match="modules is empty"):
        SparseModularActivation([], 4)
    with pytest.raises(ValueError, match="2 modules need 4"):
        SparseModularActivation([nn.Identity(), nn.Identity()], 4)(torch.zeros(1, 2, 4), torch.zeros(1, 2, 2))
