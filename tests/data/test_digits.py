import builtins

import numpy as np
import pytest

from shoestring.data.digits import TEST_SIZE, load_digits
from shoestring.errors import MissingExtra


def test_both_parts_together_are_the_bundled_digits():
    pytest.importorskip("sklearn")
    data = load_digits(seed=3)
    assert len(data.test) == TEST_SIZE
    assert len(data.train) + len(data.test) == 1797
    assert data.train.images.dtype == np.uint8
    assert data.train.images.max() == 255
    assert set(data.test.labels) == set(range(10))


def test_the_seed_decides_the_split():
    pytest.importorskip("sklearn")
    np.testing.assert_array_equal(load_digits(1).test.labels, load_digits(1).test.labels)
    assert (load_digits(1).test.labels != load_digits(2).test.labels).any()


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match=r"shoestring\[vision\]"):
        load_digits()
