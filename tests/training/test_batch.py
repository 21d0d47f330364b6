from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.training.batch import batch_size, map_tensors, split_batch, to_device

Pair = namedtuple("Pair", "x y")


@given(size=st.integers(1, 20), parts=st.integers(1, 20))
def test_parts_join_to_the_batch_and_shares_to_one(size, parts):
    batch = {"x": torch.arange(size * 2).view(size, 2), "more": [Pair(torch.arange(size), "label"), 7]}
    if parts > size:
        with pytest.raises(ValueError, match=f"{size} samples cannot be cut in {parts}"):
            list(split_batch(batch, parts))
        return
    cut = list(split_batch(batch, parts))
    assert torch.equal(torch.cat([part["x"] for part, _ in cut]), batch["x"])
    assert torch.equal(torch.cat([part["more"][0].x for part, _ in cut]), batch["more"][0].x)
    assert all(part["more"][1] == 7 and part["more"][0].y == "label" for part, _ in cut)
    assert [share * size for _, share in cut] == pytest.approx([len(part["x"]) for part, _ in cut])
    assert sum(share for _, share in cut) == pytest.approx(1)
    lengths = [len(part["x"]) for part, _ in cut]
    assert max(lengths) - min(lengths) <= 1


def test_one_part_is_the_batch_of_whatever_form():
    anything = object()
    ((part, share),) = split_batch(anything, 1)
    assert part is anything
    assert share == 1


def test_tensors_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        batch_size((torch.zeros(2), torch.zeros(3)))
    with pytest.raises(ValueError, match="none"):
        batch_size(["text"])
    with pytest.raises(ValueError, match="without axes"):
        batch_size(torch.zeros(()))


def test_nesting_is_kept():
    batch = (torch.ones(2), {"a": [torch.ones(1), None]})
    changed = map_tensors(batch, lambda tensor: tensor * 2)
    assert isinstance(changed, tuple)
    assert changed[1]["a"][0].item() == 2
    assert changed[1]["a"][1] is None
    assert to_device(batch, torch.device("meta"))[0].device.type == "meta"
