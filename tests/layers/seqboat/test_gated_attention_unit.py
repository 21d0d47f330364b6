"""Attention in the compressed sequence is attention in the whole one with a mask."""

import copy
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.seqboat import attention_reach
from shoestring.layers.seqboat.attention_positions import MOST_ROWS, positions_of
from shoestring.layers.seqboat.attention_reach import Chunks, Everywhere, Window
from shoestring.layers.seqboat.compression_index import CompressedPlaces
from shoestring.layers.seqboat.gated_attention_unit import GatedAttentionUnit, naive_gated_attention
from shoestring.notices import record_fallbacks

reaches = st.sampled_from([Window(1), Window(2), Window(5), Window(40), Chunks(3), Everywhere()])


def made(seed=0, **options):
    torch.manual_seed(seed)
    unit = GatedAttentionUnit(6, **({"d_qk": 4, "d_hidden": 10} | options)).double()
    for parameter in unit.parameters():  # far from a start at which attention is nearly uniform
        torch.nn.init.normal_(parameter, std=0.7)
    return unit


@given(
    reach=reaches,
    seq=st.sampled_from([1, 2, 7, 13, 23]),
    causal=st.booleans(),
    position=st.sampled_from(["rotary", "simple", "local_pos", None]),
    activation=st.sampled_from(["softmax", "relu2"]),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 9),
    pairs_of_a_key=st.sampled_from([0, 64]),  # 0: short sequences are cut into blocks, too
)
def test_compressed_equals_masked_dense(
    reach, seq, causal, position, activation, share, seed, pairs_of_a_key
):
    if position == "local_pos" and not isinstance(reach, Window):
        position = None
    unit = made(seed, reach=reach, causal=causal, position=position, activation=activation, max_positions=9)
    x = torch.randn(3, seq, 6, dtype=torch.float64, requires_grad=True)
    active = torch.rand(3, seq) < share
    active[0] = torch.rand(seq) < share  # ragged
    places = CompressedPlaces(active)
    filled = None if places.is_full else places.filled
    with mock.patch.object(attention_reach, "PAIRS_OF_A_KEY", pairs_of_a_key):
        fast = places.extract(unit(places.compress(x), places.positions, filled))
    slow = naive_gated_attention(unit, x, active)
    torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-8)
    weight = torch.randn_like(slow)
    inputs = [x, *unit.parameters()]
    ours = torch.autograd.grad((fast * weight).sum(), inputs, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad((slow * weight).sum(), inputs, allow_unused=True, materialize_grads=True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-8)


@given(
    reach=st.sampled_from([Window(1), Window(5), Window(40), Chunks(3)]),
    seq=st.sampled_from([1, 2, 7, 13, 23]),
    causal=st.booleans(),
    position=st.sampled_from(["rotary", None]),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    start=st.sampled_from([0, MOST_ROWS]),
    seed=st.integers(0, 9),
)
def test_compiled_equals_masked_dense(reach, seq, causal, position, share, start, seed):
    exact = made(seed, reach=reach, causal=causal, position=position)
    unit = copy.deepcopy(exact).float()
    x = torch.randn(3, seq, 6, dtype=torch.float64, requires_grad=True)
    narrow = x.detach().float().requires_grad_()
    active = torch.rand(3, seq) < share
    places = CompressedPlaces(active)
    filled = None if places.is_full else places.filled
    with record_fallbacks() as said:
        # Rotary angles are of differences: all tokens may stand further along.
        fast = places.extract(unit(places.compress(narrow), places.positions + start, filled))
    assert not said
    slow = naive_gated_attention(exact, x, active)
    tolerance = 1e-4 if start == 0 else 2e-2  # an angle of that many turns is rounded
    torch.testing.assert_close(fast.double(), slow, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(slow)
    ours = torch.autograd.grad((fast * weight.float()).sum(), [narrow, *unit.parameters()])
    theirs = torch.autograd.grad(
        (slow * weight).sum(), [x, *exact.parameters()], allow_unused=True, materialize_grads=True
    )
    for mine, other in zip(ours, theirs, strict=True):
        scale = 1 + other.abs().max().item()
        torch.testing.assert_close(mine.double(), other, rtol=tolerance, atol=tolerance * scale)


def test_dropout_of_values_is_not_forgotten():
    unit = made(reach=Window(5), dropout=0.5).float().train()
    x = torch.randn(1, 20, 6)
    assert not torch.equal(unit(x), unit(x))
    unit.eval()
    torch.testing.assert_close(unit(x), unit(x))


def test_a_local_table_has_3w_entries_of_which_2w_and_one_are_read():
    unit = made(reach=Window(4), causal=False, position="local_pos")
    assert unit.positions.table.shape == (12,)
    x = torch.randn(1, 30, 6, dtype=torch.float64)
    unit(x).sum().backward()
    assert (unit.positions.table.grad != 0).tolist() == [True] * 9 + [False] * 3


def test_the_squared_rectifier_divides_by_the_window_not_by_the_keys_there_are():
    for causal, divisor in ((True, 8), (False, 16)):
        unit = made(reach=Window(8), causal=causal, position=None, activation="relu2")
        x = torch.randn(1, 2, 6, dtype=torch.float64)
        q, k, v, r = unit.parts(x, torch.zeros(1, 2, dtype=torch.int64))
        last = ((q[0, 1] / divisor) @ k[0].T).relu() ** 2 @ v[0]
        torch.testing.assert_close(unit(x)[0, 1], unit.output(last * r[0, 1]))


def test_beyond_max_positions_the_longest_distance_repeats_and_says_so():
    positions = positions_of("simple", 4, Everywhere(), 3)
    far, near = torch.tensor([[0, 9]]), torch.tensor([[0, 2]])
    apart = torch.zeros(1, 2, 2, dtype=torch.int64)
    with record_fallbacks() as said:
        assert torch.equal(positions.bias(far, far, apart), positions.bias(near, near, apart))
    assert said == [
        "position 'simple': position 9 is beyond max_positions=3; "
        "longer distances repeat the bias of the longest"
    ]


def test_start_and_sizes():
    unit = GatedAttentionUnit(8, d_qk=4, reach=Window(2))
    assert unit.d_hidden == 16
    assert unit.project.weight.shape == (4 + 16 + 16, 8)
    assert unit.gain.abs().max() <= 0.04
    assert unit.offset.eq(0).all()
    assert unit.output.bias.eq(0).all()


def test_bad_input():
    with pytest.raises(ValueError, match="window=0 must be 1 or more"):
        Window(0)
    with pytest.raises(ValueError, match="chunk=0 must be 1 or more"):
        Chunks(0)
    with pytest.raises(ValueError, match=r"position=\('local_pos', 'rotary'\) names several"):
        made(reach=Window(2), position=("local_pos", "rotary"))
    with pytest.raises(ValueError, match="position='absolute'; use one of 'rotary'"):
        made(reach=Window(2), position="absolute")
    with pytest.raises(ValueError, match="position='local_pos' counts inside a window"):
        made(reach=Everywhere(), position="local_pos")
    with pytest.raises(ValueError, match="d_qk=5 must be even"):
        made(reach=Window(2), d_qk=5)
    with pytest.raises(ValueError, match="activation='gelu'; use one of 'softmax', 'relu2'"):
        made(reach=Window(2), activation="gelu")
    with pytest.raises(ValueError, match="max_positions=0"):
        made(reach=Window(2), position="simple", max_positions=0)
    with pytest.raises(ValueError, match="d_hidden=0"):
        made(reach=Window(2), d_hidden=0)


@pytest.mark.parametrize("activation", ["softmax", "relu2"])
@pytest.mark.parametrize("reach", [Window(3), Everywhere()])
def test_presence_multiplies_the_weight_of_a_key(activation, reach):
    unit = made(reach=reach, activation=activation, position=None)
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    presence = torch.rand(2, 9, 1, dtype=torch.float64)
    q, k, v, r = unit.parts(x, torch.arange(9).expand(2, 9))
    apart = torch.arange(9)[:, None] - torch.arange(9)
    seen = (apart >= 0) & (apart <= (reach.size if isinstance(reach, Window) else 9))
    scores = q @ k.transpose(1, 2) * unit.scale(9)
    weights = (
        (scores.exp() if activation == "softmax" else scores.relu() ** 2) * presence.transpose(1, 2) * seen
    )
    if activation == "softmax":
        weights = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(unit(x, presence=presence), unit.output((weights @ v) * r))


def test_absent_keys_are_as_if_they_were_not_there():
    unit = made(reach=Everywhere())
    x = torch.randn(1, 9, 6, dtype=torch.float64)
    kept = torch.tensor([0, 2, 3, 7])
    presence = torch.zeros(1, 9, 1, dtype=torch.float64)
    presence[:, kept] = 1
    torch.testing.assert_close(unit(x, presence=presence)[:, kept], unit(x[:, kept], kept[None]))
