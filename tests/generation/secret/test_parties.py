"""Parties as processes: handshake, dead peers, bad settings, and the bytes of the dealer."""

import os
import socket
import time

import numpy as np
import pytest
from tests.generation.secret.sharing import opened, shared

from shoestring.generation.secret.channel import Channel, HandshakeError
from shoestring.generation.secret.parties import HOST, Dealing, PartyGroup, Setting
from shoestring.generation.secret.three_party import ThreeParty
from shoestring.generation.secret.two_party import TwoParty
from shoestring.numbers.ring import RingFormat


def product(engine, x, y):
    return engine.truncate(engine.matmul(x, y), 16)


def whoami(engine):
    return os.getpid()


def scaled(engine, x, factor):
    return x.scaled(factor)


def fails(engine, x):
    if engine.rank == 1:
        raise ArithmeticError("nothing to divide by")
    return engine.open(x)


def leaves(engine, x):
    if engine.rank == 1:
        time.sleep(1.5)
    return engine.open(x)


@pytest.mark.slow
def test_parties_are_processes_of_their_own():
    with PartyGroup(Setting()) as group:
        pids = set(group.run(whoami).results)
        assert len(pids | {os.getpid()}) == 3
        x, y = np.random.default_rng(0).normal(size=(2, 3, 4)), np.ones((2, 4, 5))
        found = group.run(product, shared(group, x, y))
        np.testing.assert_allclose(opened(group, found.results), x @ y, atol=1e-3)
        assert found.sent_bytes == 16 * 2 * (12 + 20)
        group.workers[1].kill()
        with pytest.raises(ConnectionError, match="party 1"):
            group.run(product, shared(group, x, y))


@pytest.mark.slow
def test_three_processes_without_a_dealer():
    with PartyGroup(Setting(parties=3)) as group:
        x, y = np.ones((1, 2, 3)), np.ones((1, 3, 2))
        found = group.run(product, shared(group, x, y))
        np.testing.assert_allclose(opened(group, found.results), x @ y, atol=1e-3)


def test_a_dealer_of_its_own_sends_a_word_for_each_entry_of_a_product():
    with PartyGroup(Setting(timeout=120.0), threads=True) as group:
        x, y = np.ones((2, 3, 4)), np.ones((2, 4, 5))
        found = group.run(product, shared(group, x, y))
        np.testing.assert_allclose(opened(group, found.results), x @ y, atol=1e-3)
        assert found.offline_bytes > 8 * 2 * 15
        assert found.sent_bytes == 16 * 2 * (12 + 20)


@pytest.mark.parametrize("parties", [2, 3])
def test_parties_that_disagree_stop_before_they_compute(parties):
    with PartyGroup(Setting(parties=parties, dealer=Dealing.STUB), threads=True) as group:
        (x,) = shared(group, np.ones(3))
        with pytest.raises(HandshakeError, match="disagree on settings"):
            group.run(scaled, [x], of_party={0: {"factor": 2}, 1: {"factor": 3}, 2: {"factor": 2}})
    with PartyGroup(Setting(parties=parties, dealer=Dealing.STUB), threads=True) as group:
        x = [*shared(group, np.ones(3))[0][:-1], shared(group, np.ones(4))[0][-1]]
        with pytest.raises(HandshakeError, match=r"disagree on shapes: \[\[\d\], \[\d\]\] and"):
            group.run(product, [x, x])


def test_a_party_that_fails_is_named_and_the_others_do_not_wait():
    with PartyGroup(Setting(dealer=Dealing.STUB), threads=True) as group:
        with pytest.raises(ArithmeticError, match="party 1: nothing to divide by"):
            group.run(fails, shared(group, np.ones(3)))
        with pytest.raises(ConnectionError, match="start a new group"):
            group.run(fails, shared(group, np.ones(3)))


def test_silence_is_an_error_after_a_while():
    with (
        PartyGroup(Setting(dealer=Dealing.STUB, timeout=0.3), threads=True) as group,
        pytest.raises(ConnectionError, match="party 1 has been silent for 0.3 s"),
    ):
        group.run(leaves, shared(group, np.ones(3)))


def test_bad_settings_are_refused():
    for bad, message in (
        ({"parties": 4}, "parties=4"),
        ({"dealer": None}, "needs a dealer"),
        ({"parties": 3, "processes": 4}, "processes=4"),
    ):
        with pytest.raises(ValueError, match=message):
            Setting(**bad)

    server = socket.create_server((HOST, 0))
    lone = Channel(1, {0: socket.create_connection(server.getsockname())})
    with pytest.raises(ValueError, match="give party 1 one"):
        TwoParty(lone, RingFormat(), b"", None)
    with pytest.raises(ValueError, match="2 parties: replicated shares are for exactly 3"):
        ThreeParty(lone, RingFormat(), (b"", b""))
    lone.close()
    server.close()
