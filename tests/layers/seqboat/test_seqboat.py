"""SeqBoat: attention where it is asked for equals the equations, in a batch, in pieces and token by token."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from shoestring.layers.seqboat.attention_reach import Chunks, Everywhere, Window
from shoestring.layers.seqboat.ema import naive_damped_ema
from shoestring.layers.seqboat.seqboat import SeqBoat, activity_by_layer, naive_seqboat
from shoestring.layers.seqboat.sparse_modular_activation import RouterOptions
from shoestring.layers.state import Recurrent, reorder_state, state_bytes

D = 6


def made(seed=0, **options):
    """A layer in evaluation whose router and attention are far from their timid start."""
    torch.manual_seed(seed)
    options = {"d_qk": 4, "d_hidden": 8, "n_states": 3, "reach": Window(3)} | options
    layer = SeqBoat(D, **options).double().eval()
    with torch.no_grad():
        layer.gate.weight.normal_(std=1.0)
        if layer.choose is not None:
            layer.choose.weight.normal_(std=1.0)
        if layer.attention is not None:
            for parameter in layer.attention.parameters():
                parameter.normal_(std=0.6)
        if layer.router is not None:
            layer.router.temperature.fill_(0.3)
    return layer


def choice(layer, x):
    """Which tokens the router picks."""
    m = F.silu(naive_damped_ema(layer.ema, layer.norm(x) if layer.prenorm else x))
    u = layer.choose(m)
    return u[..., 1] > u[..., 0]


def force(layer, option):
    """The router's logits are constant: option 0 skips, 1 runs."""
    with torch.no_grad():
        layer.choose.weight.zero_()
        layer.choose.bias[:] = torch.tensor([0.0, 2.0 if option else -2.0])


kinds = st.fixed_dictionaries(
    {
        "position": st.sampled_from(["rotary", "simple", "local_pos"]),
        "activation": st.sampled_from(["softmax", "relu2"]),
        "norm": st.sampled_from(["layer", "batch", "scale"]),
        "prenorm": st.booleans(),
    }
)


@settings(max_examples=8)
@given(kind=kinds, causal=st.booleans(), seq=st.sampled_from([1, 2, 7, 17, 23]), seed=st.integers(0, 9))
def test_forward_and_gradient_equal_the_equations(kind, causal, seq, seed):
    layer = made(seed, causal=causal, **kind)
    x = torch.randn(2, seq, D, dtype=torch.float64, requires_grad=True)
    active = choice(layer, x)
    fast, slow = layer(x), naive_seqboat(layer, x, active)
    torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-8)
    assert layer.activity == pytest.approx(active.double().mean().item())
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad(fast.square().sum(), inputs, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(slow.square().sum(), inputs, allow_unused=True, materialize_grads=True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("reach", [Window(3), Chunks(4), Everywhere(), None])
def test_without_a_router_every_token_attends(reach):
    layer = made(reach=reach, router=None)
    x = torch.randn(2, 11, D, dtype=torch.float64)
    torch.testing.assert_close(layer(x), naive_seqboat(layer, x, torch.ones(2, 11, dtype=torch.bool)))
    assert layer.activity == (0.0 if reach is None else 1.0)


def test_all_active_is_dense_attention_with_the_same_window():
    layer = made()
    force(layer, 1)
    dense = made(router=None)
    dense.load_state_dict(
        {n: p for n, p in layer.state_dict().items() if not n.startswith(("choose.", "router."))}
    )
    x = torch.randn(2, 19, D, dtype=torch.float64)
    confidence = torch.softmax(torch.tensor([0.0, 2.0]) / torch.tensor(0.3).exp(), 0)[1].double()
    with torch.no_grad():  # a confidence below 1 scales the last projection
        dense.attention.output.weight *= confidence
        dense.attention.output.bias *= confidence
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-6, atol=1e-6)
    assert layer.activity == 1.0


def test_none_active_is_the_moving_average_alone_and_attention_learns_nothing():
    layer = made()
    force(layer, 0)
    x = torch.randn(2, 9, D, dtype=torch.float64)
    m = F.silu(layer.ema(layer.norm(x)))
    out = layer(x)
    assert torch.equal(out, F.silu(x + layer.gate(m)))
    out.sum().backward()
    for parameter in layer.attention.parameters():
        assert parameter.grad is not None
        assert parameter.grad.eq(0).all()
    assert layer.activity == 0.0


def test_pads_change_nothing():
    for kind in ({}, {"router": None}, {"reach": Everywhere(), "router": None}, {"causal": False}):
        layer = made(**kind)
        x = torch.randn(2, 12, D, dtype=torch.float64)
        mask = torch.ones(2, 12, dtype=torch.bool)
        mask[1, 8:] = False
        other = x.clone()
        other[1, 8:] = 100.0
        torch.testing.assert_close(layer(x, mask)[mask], layer(other, mask)[mask])
        torch.testing.assert_close(layer(x, mask)[1, :8], layer(x[1:, :8])[0])


@settings(max_examples=8)
@given(
    kind=kinds,
    window=st.integers(1, 4),
    seq=st.integers(1, 26),
    cut=st.integers(0, 26),
    piece=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_steps_and_pieces_equal_the_batch(kind, window, seq, cut, piece, seed):
    layer = made(seed, reach=Window(window), max_positions=8, **kind)
    assert isinstance(layer, Recurrent)
    x, cut = torch.randn(2, seq, D, dtype=torch.float64), min(cut, seq)
    state, outs = layer.init_state(2), []
    size = state_bytes(state)
    for part in x[:, :cut].split(piece, 1) if cut else ():
        out, state = layer.prefill(part, state)
        outs.append(out)
    for t in range(cut, seq):
        out, state = layer.step(x[:, t], state)
        outs.append(out[:, None])
    torch.testing.assert_close(torch.cat(outs, 1), layer(x), rtol=1e-8, atol=1e-8)
    assert state_bytes(state) == size


def test_the_window_outgrown_by_many_active_tokens():
    layer = made(reach=Window(4))
    force(layer, 1)
    x = torch.randn(1, 40, D, dtype=torch.float64)
    state, outs = layer.init_state(1), []
    assert state["keys"].shape[1] == 5
    for t in range(40):
        out, state = layer.step(x[:, t], state)
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs, 1), layer(x), rtol=1e-9, atol=1e-9)


def test_a_reordered_state_goes_on_as_its_sample():
    layer = made()
    x = torch.randn(3, 14, D, dtype=torch.float64)
    _, state = layer.prefill(x[:, :13], layer.init_state(3))
    out, _ = layer.step(x[[2, 0], 13], reorder_state(state, torch.tensor([2, 0])))
    torch.testing.assert_close(out, layer(x)[[2, 0], 13])


def test_an_ema_alone_has_a_state_too():
    layer = made(reach=None)
    x = torch.randn(2, 8, D, dtype=torch.float64)
    first, state = layer.prefill(x[:, :7], layer.init_state(2))
    out, _ = layer.step(x[:, 7], state)
    torch.testing.assert_close(torch.cat([first, out[:, None]], 1), layer(x))


@settings(max_examples=8)
@given(at=st.integers(1, 20), seed=st.integers(0, 9), position=st.sampled_from(["rotary", "local_pos"]))
def test_the_future_changes_nothing(at, seed, position):
    layer = made(seed, position=position)
    x = torch.randn(2, 21, D, dtype=torch.float64)
    other = x.clone()
    other[:, at:] = torch.randn(2, 21 - at, D, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[:, :at], layer(other)[:, :at], rtol=1e-6, atol=1e-6)
    both = made(seed, position=position, causal=False)
    assert not torch.allclose(both(x)[:, :at], both(other)[:, :at], rtol=1e-6, atol=1e-6)


def test_a_sequence_does_not_depend_on_its_neighbours_in_the_batch():
    layer = made()
    x = torch.randn(3, 17, D, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.cat([layer(row[None]) for row in x]))


def test_finite_difference_of_a_logit_through_the_layer():
    layer = made()
    x = torch.randn(1, 9, D, dtype=torch.float64)
    active = choice(layer, x)[0]
    assert active.any()
    assert not active.all()
    shift = torch.zeros(1, 9, 2, dtype=torch.float64, requires_grad=True)

    def loss(shift):
        handle = layer.router.register_forward_pre_hook(lambda _, args: (args[0] + shift, *args[1:]))
        out = layer(x).square().sum()
        handle.remove()
        return out

    (grad,) = torch.autograd.grad(loss(shift), shift)
    assert grad[0, ~active].eq(0).all()
    token, eps = int(active.nonzero()[0]), 1e-6
    for option in (0, 1):
        nudge = torch.zeros_like(shift)
        nudge[0, token, option] = eps
        difference = (loss(nudge) - loss(-nudge)) / (2 * eps)
        assert grad[0, token, option].item() == pytest.approx(difference.item(), rel=1e-5, abs=1e-9)
        assert grad[0, token, option] != 0


def test_dropout_works_in_training_only_and_warm_up_runs_all():
    layer = made(dropout=0.5, router=RouterOptions(warmup=1)).train()
    x = torch.randn(2, 9, D, dtype=torch.float64)
    seen = []
    layer.attention.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    assert seen[0] == 9
    assert int(layer.router.warmup_passes) == 1
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_bfloat16_autocast_stays_near():
    layer = made().float()
    x = torch.randn(2, 33, D)
    force(layer, 1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), layer(x).float())
        out = layer(x)
    torch.testing.assert_close(out.float(), layer(x), rtol=0.1, atol=0.1)


def test_activity_is_told_by_layer():
    model = torch.nn.Sequential(made(), made(reach=None))
    model(torch.randn(2, 9, D, dtype=torch.float64))
    assert set(activity_by_layer(model)) == {"0", "1"}
    assert activity_by_layer(model)["1"] == 0.0
    assert 0 <= activity_by_layer(model)["0"] <= 1


def test_bad_input():
    x = torch.randn(2, 5, D, dtype=torch.float64)
    layer = made()
    with pytest.raises(TypeError, match="mask is torch.float32; give bool"):
        layer(x, torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4\); give \(2, 5\)"):
        layer(x, torch.ones(2, 4, dtype=torch.bool))
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match="no token of batch item 1"):
        layer(x, mask)
    both = made(causal=False)
    for call in (lambda: both.init_state(1), lambda: both.step(x[:, 0], {}), lambda: both.prefill(x, {})):
        with pytest.raises(ValueError, match="bidirectional layer has no step"):
            call()
    with pytest.raises(ValueError, match=r"Chunks\(size=3\) has no memory of fixed size"):
        made(reach=Chunks(3)).init_state(1)
    with pytest.raises(ValueError, match="truncation=4 cuts the kernel"):
        made(ema_truncation=4).init_state(1)
    with pytest.raises(ValueError, match="norm='group'; use one of 'layer'"):
        made(norm="group")
    with pytest.raises(ValueError, match=r"position=\('local_pos', 'rotary'\)"):
        made(position=("local_pos", "rotary"))


def test_no_warning_at_the_start():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SeqBoat(D)(torch.randn(1, 4, D))


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_router_learns_in_its_warmup_alone_who_is_needed_as_a_key(warmup):
    layer = made(router=RouterOptions(warmup=warmup), reach=Window(9)).train()
    x = torch.randn(1, 8, D, dtype=torch.float64)
    logits = []

    def keep(module, args, out):
        out.retain_grad()
        logits.append(out)

    layer.choose.register_forward_hook(keep)
    layer(x)[0, -1].sum().backward()
    gradient = logits[0].grad[0].abs().sum(-1)
    assert (gradient[:-1] > 0).all() == bool(warmup)
    assert gradient[:-1].eq(0).all() == (not warmup)


def test_ragged_choices_without_looking_ahead_need_no_mask():
    layer = made(reach=Window(2))
    x = torch.randn(3, 12, D, dtype=torch.float64)
    active = choice(layer, x)
    assert len(set(active.sum(1).tolist())) > 1
    torch.testing.assert_close(layer(x), naive_seqboat(layer, x, active), rtol=1e-8, atol=1e-8)
