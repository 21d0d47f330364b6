"""Parties in threads of the test's own process: the sockets and protocols of the processes, started at
once."""

import pytest

from shoestring.generation.secret.parties import Dealing, PartyGroup, Setting


@pytest.fixture(scope="session")
def two_parties():
    with PartyGroup(Setting(dealer=Dealing.STUB, timeout=120.0), threads=True) as group:
        yield group


@pytest.fixture(scope="session")
def three_parties():
    with PartyGroup(Setting(parties=3, timeout=120.0), threads=True) as group:
        yield group


@pytest.fixture(params=[2, 3], ids=["two parties", "three parties"])
def group(request, two_parties, three_parties):
    return two_parties if request.param == 2 else three_parties
