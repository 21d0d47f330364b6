import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.copying import Copying, DelayedSignal, SelectiveCopying, naive_copy, naive_delay
from shoestring.data.seeded import IGNORED


@given(
    symbols=st.integers(1, 7), delay=st.integers(0, 20), alphabet=st.integers(2, 9), seed=st.integers(0, 99)
)
@pytest.mark.parametrize("kind", [Copying, SelectiveCopying])
def test_the_answer_is_what_came_first_in_its_order(kind, symbols, delay, alphabet, seed):
    task = kind(symbols, delay, alphabet, batch_size=3, seed=seed)
    tokens, targets = task(seed)
    assert tokens.shape == targets.shape == (3, task.length)
    assert torch.equal(targets, naive_copy(tokens))
    assert (targets[:, :-symbols] == IGNORED).all()
    assert (tokens > 1).sum(1).tolist() == [symbols] * 3
    assert tokens.max() < task.vocabulary


def test_only_the_selective_form_scatters():
    places = [(kind(4, 30, seed=1)(0)[0] > 1).nonzero()[:, 1] for kind in (Copying, SelectiveCopying)]
    assert places[0].max() == 3
    assert places[1].max() > 20


@given(length=st.integers(2, 60), data=st.data(), cutoff=st.sampled_from([0.01, 0.3, 1.0]))
def test_a_signal_comes_again_after_the_delay(length, data, cutoff):
    delay = data.draw(st.integers(0, length - 1))
    inputs, targets = DelayedSignal(length, delay, cutoff, batch_size=2)(0)
    for t in range(length):
        expected = inputs[:, t - delay] if t >= delay else torch.zeros(2, 1)
        assert torch.equal(targets[:, t], expected)
    assert torch.equal(targets, naive_delay(inputs, delay))
    torch.testing.assert_close(inputs.square().mean(1), torch.ones(2, 1), rtol=1e-4, atol=1e-4)


def test_a_signal_has_no_wave_above_its_cutoff():
    inputs, _ = DelayedSignal(200, 10, cutoff=0.25, batch_size=3)(4)
    power = torch.fft.rfft(inputs[..., 0].double()).abs()
    assert power[:, 26:].max() < 1e-3 * power.max()
    assert power[:, 20:26].max() > 1e-2 * power.max()


@pytest.mark.parametrize("kind", [Copying, SelectiveCopying, DelayedSignal])
def test_a_batch_is_a_function_of_seed_and_step(kind):
    first, same, *others = (kind(seed=seed)(step)[0] for seed, step in ((1, 2), (1, 2), (2, 2), (1, 3)))
    assert torch.equal(first, same)
    assert all(not torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (Copying, {"symbols": 0}),
        (Copying, {"delay": -1}),
        (Copying, {"alphabet": 1}),
        (DelayedSignal, {"delay": 1000}),
        (DelayedSignal, {"cutoff": 0.0}),
        (DelayedSignal, {"batch_size": 0}),
    ],
)
def test_what_is_out_of_range_is_named(kind, bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        dataclasses.replace(kind(), **bad)
