"""Mamba mixers in the place of attention: the equations, linear attention as a limit, states, padding."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.mamba.grouped_mamba import (
    GroupedMambaMixer,
    MambaShape,
    ScanKind,
    grouped_mixer,
    naive_grouped_mamba,
)
from shoestring.layers.parameter_hint import hinted_parameters
from shoestring.layers.state import Recurrent, clone_state, reorder_state, state_bytes
from shoestring.yardstick.causality import leaks

KINDS = [ScanKind.SELECTIVE, ScanKind.SSD]


def mixer(kind=ScanKind.SELECTIVE, heads=4, kv_heads=2, head_dim=6, dtype=torch.float64, seed=0, **sizes):
    torch.manual_seed(seed)
    sizes = {"d_state": head_dim if kind is ScanKind.SSD else 3, "dt_rank": 3, **sizes}
    made = grouped_mixer(7, heads, kv_heads, head_dim, MambaShape(scan=kind, **sizes)).to(dtype)
    torch.nn.init.normal_(made.conv_bias, std=0.5)
    torch.nn.init.normal_(made.D)
    return made


def sequence(batch=2, seq=9, seed=1, dtype=torch.float64):
    return torch.randn(batch, seq, 7, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(
    seq=st.integers(1, 40),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2), (6, 3)]),
    sizes=st.sampled_from([(6, 3), (6, 6), (2, 1), (10, 5), (6, 2)]),
    d_conv=st.sampled_from([1, 2, 4]),
)
def test_the_mixer_is_its_equation(seq, heads, sizes, d_conv):
    head_dim, d_state = sizes
    layer = mixer(
        heads=heads[0], kv_heads=heads[1], head_dim=head_dim, d_state=d_state, d_conv=d_conv, seed=seq
    )
    hidden = sequence(seq=seq, seed=seq).requires_grad_()
    found, wanted = layer(hidden), naive_grouped_mamba(layer, hidden)
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(found)
    inputs = [hidden, *layer.parameters()]
    grads = [torch.autograd.grad((y * weight).sum(), inputs) for y in (found, wanted)]
    for mine, naive in zip(*grads, strict=True):
        torch.testing.assert_close(mine, naive, rtol=1e-6, atol=1e-8)


def test_the_compiled_scan_is_the_equation_in_float64():
    layer = mixer(heads=4, kv_heads=2, head_dim=16, d_state=16)
    hidden = sequence(seq=70)
    wanted = naive_grouped_mamba(layer, hidden)
    torch.testing.assert_close(layer.float()(hidden.float()).double(), wanted, rtol=1e-4, atol=1e-5)


def test_without_groups_it_scans_as_the_slow_path_of_transformers():
    """One head as wide as the state: B and C are shared by all channels, as in Mamba."""
    from transformers.models.mamba import modeling_mamba as theirs

    layer = mixer(heads=1, kv_heads=1, head_dim=16, d_state=16, d_conv=4, dtype=torch.float32)
    hidden = sequence(seq=21, dtype=torch.float32)
    z, x, B, C, dt = layer.project(hidden)
    conved = theirs.causal_conv1d_fn(x.mT, layer.conv_weight, layer.conv_bias, activation="silu")
    y = theirs.mamba_selective_scan(
        conved, dt.mT, layer.A(), B[:, :, 0].mT, C[:, :, 0].mT, D=layer.D, z=z.mT,
        delta_bias=layer.dt_proj.bias, delta_softplus=True,
    )  # fmt: skip
    torch.testing.assert_close(layer(hidden), layer.out_proj(y.mT), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_without_decay_it_is_linear_attention(kind, heads):
    """A = 0, dt = 1, D = 0, without convolution and gate: tril(Q Kᵀ) V W_O, grouped heads included."""
    (n_heads, kv_heads), head_dim, seq = heads, 6, 23
    layer = mixer(kind, heads=n_heads, kv_heads=kv_heads, head_dim=head_dim, d_state=head_dim)
    with torch.no_grad():
        layer.A_log.fill_(-math.inf)
        layer.D.zero_()
        layer.dt_proj.weight.zero_()
        layer.dt_proj.bias.fill_(math.log(math.e - 1))
    hidden = sequence(seq=seq)
    _, x, B, C, dt = layer.project(hidden)
    found = layer.out_proj(layer.scan(x, dt, B, C, None, None)[0])
    q, k, v = (
        (hidden @ layer.in_proj.weight[layer.rows[name]].T).unflatten(-1, (-1, head_dim)).transpose(1, 2)
        for name in ("C", "B", "x")
    )
    k, v = (part.repeat_interleave(n_heads // kv_heads, 1) for part in (k, v))
    wanted = layer.out_proj(((q @ k.mT).tril() @ v).transpose(1, 2).flatten(2))
    assert float((found - wanted).detach().abs().max() / wanted.detach().abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@given(pieces=st.lists(st.integers(1, 5), min_size=1, max_size=4), d_conv=st.sampled_from([1, 2, 4]))
def test_pieces_and_steps_make_the_whole(kind, pieces, d_conv):
    """Prompts shorter than the convolution included."""
    layer = mixer(kind, d_conv=d_conv)
    assert isinstance(layer, Recurrent)
    x = sequence(seq=sum(pieces))
    whole = layer(x)
    state = stepped = layer.init_state(2)
    found, steps = [], []
    for piece in x.split(pieces, 1):
        y, state = layer.prefill(piece, state)
        found.append(y)
    for t in range(x.shape[1]):
        y, stepped = layer.step(x[:, t], stepped)
        steps.append(y)
    torch.testing.assert_close(torch.cat(found, 1), whole)
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    for name, part in state.items():
        torch.testing.assert_close(part, stepped[name])


@pytest.mark.parametrize("kind", KINDS)
@given(tokens=st.lists(st.integers(0, 7), min_size=2, max_size=3), left=st.booleans())
def test_padding_changes_nothing(kind, tokens, left):
    """Rows of different lengths, padded with anything, in front or behind, against each row alone."""
    layer, seq = mixer(kind), 7
    x = 100 * sequence(batch=len(tokens), seq=seq, seed=5)
    before = layer.prefill(sequence(batch=len(tokens), seq=5, seed=6), layer.init_state(len(tokens)))[1]
    place = torch.arange(seq)
    count = torch.tensor(tokens)[:, None]
    present = place >= seq - count if left else place < count
    y, state = layer.prefill(x, before, present)
    assert not y[~present].any()
    for row in range(len(tokens)):
        own = {name: part[row : row + 1] for name, part in before.items()}
        alone, after = layer.prefill(x[row, present[row]][None], own) if tokens[row] else (x[:1, :0], own)
        torch.testing.assert_close(y[row, present[row]][None], alone)
        for name, part in after.items():
            torch.testing.assert_close(state[name][row : row + 1], part)


def test_padding_in_front_of_a_first_prompt():
    layer = mixer(dtype=torch.float32)
    x = sequence(seq=6, dtype=torch.float32)
    present = torch.tensor([[True] * 6, [False] * 4 + [True] * 2])
    torch.testing.assert_close(layer(x, present=present)[1, 4:], layer(x[1:, 4:])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_in_one_row_start_anew(kind):
    layer, x = mixer(kind), sequence(seq=9)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2, 2], [3, 3, 4, 4, 4, 4, 4, 4, 4]])
    y = layer(x, documents=documents)
    for row, start, end in [(0, 0, 4), (0, 4, 6), (0, 6, 9), (1, 0, 2), (1, 2, 9)]:
        torch.testing.assert_close(y[row : row + 1, start:end], layer(x[row : row + 1, start:end]))
    with pytest.raises(ValueError, match="give padding a document"):
        layer(x, documents=documents, present=documents > 0)
    with pytest.raises(ValueError, match="documents are"):
        layer(x, documents=documents[:, :4])


@pytest.mark.parametrize("kind", KINDS)
def test_causality_and_states_of_constant_size(kind):
    layer = mixer(kind)
    assert not leaks(lambda x: layer(x[None])[0], sequence(batch=1)[0]).any()
    sizes = {state_bytes(layer.prefill(sequence(seq=n), layer.init_state(2))[1]) for n in (1, 2, 9, 50)} | {
        state_bytes(layer.init_state(2))
    }
    assert len(sizes) == 1
    state = layer.prefill(sequence(), layer.init_state(2))[1]
    copied = clone_state(state)
    turned = reorder_state(state, torch.tensor([1, 0, 1]))
    torch.testing.assert_close(turned["ssm"][2], copied["ssm"][1])


@pytest.mark.parametrize("kind", KINDS)
def test_states_stay_exact_in_half_precision(kind):
    layer = mixer(kind, dtype=torch.bfloat16)
    state = layer.init_state(2)
    assert (state["conv"].dtype, state["ssm"].dtype) == (torch.bfloat16, torch.float32)
    y, state = layer.prefill(sequence(dtype=torch.bfloat16), state)
    assert (y.dtype, state["ssm"].dtype) == (torch.bfloat16, torch.float32)
    narrow = grouped_mixer(7, 4, 2, 6, layer.shape, dtype=torch.bfloat16)
    assert narrow.A_log.dtype == narrow.D.dtype == torch.float32
    layer = mixer(kind, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer.prefill(sequence(dtype=torch.float32), layer.init_state(2))
    assert state["ssm"].dtype == torch.float32
    exact = layer(sequence(dtype=torch.float32))
    torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.05 * float(exact.abs().max()))


def test_initial_values_and_hints():
    torch.manual_seed(0)
    layer = GroupedMambaMixer(32, 4, 2, 16)
    torch.testing.assert_close(layer.A(), -torch.arange(1.0, 17).expand(64, 16))
    assert bool((layer.D == 1).all())
    assert not layer.conv_bias.any()
    steps = torch.nn.functional.softplus(layer.dt_proj.bias)
    assert float(steps.min()) >= 1e-3 * (1 - 1e-5)
    assert float(steps.max()) <= 0.1 * (1 + 1e-5)
    assert float(layer.conv_weight.abs().max()) <= 0.5
    assert float(layer.dt_proj.weight.abs().max()) <= 16**-0.5
    assert float(layer.in_proj.weight.abs().max()) <= 32**-0.5
    hints = {name: hint.weight_decay for name, _, hint in hinted_parameters(layer)}
    assert {name for name, decay in hints.items() if decay == 0.0} == {"A_log", "D"}


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"d_state=5 does not divide head_dim · kv_heads = 6 · 2"):
        grouped_mixer(7, 4, 2, 6, MambaShape(d_state=5))
    with pytest.raises(ValueError, match=r"d_inner=25 must be heads · head_dim = 4 · 6 = 24"):
        grouped_mixer(7, 4, 2, 6, MambaShape(d_state=3, d_inner=25))
    with pytest.raises(ValueError, match=r"the ssd scan takes head_dim=6 states"):
        grouped_mixer(7, 4, 2, 6, MambaShape(d_state=3, scan=ScanKind.SSD))
    with pytest.raises(ValueError, match="dt_rank=0 must be at least 1"):
        MambaShape(dt_rank=0)
