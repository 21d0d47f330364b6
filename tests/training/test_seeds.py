import random

import numpy as np
import pytest
import torch

from shoestring.training.seeds import kept_generators, seed_everything


def drawn():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_every_generator_follows_the_numbers():
    seen = []
    for numbers in ((0, 1), (0, 1), (1, 0), (0, 1, 0)):
        seed_everything(*numbers)
        seen.append(drawn())
    assert seen[0] == seen[1]
    for values in zip(*seen[1:], strict=True):
        assert len(set(values)) == 3


def test_the_callers_generators_stay_also_after_an_error():
    seed_everything(5)
    expected = drawn()
    seed_everything(5)
    with pytest.raises(ZeroDivisionError), kept_generators(torch.device("cpu")):
        seed_everything(6)
        raise ZeroDivisionError
    assert drawn() == expected
