import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.routing.relative_tables import RelativeTables


@given(
    largest=st.integers(1, 9), rows=st.integers(1, 7), columns=st.integers(1, 7), dim=st.sampled_from([1, 3])
)
def test_tables_equal_the_sum_over_pairs(largest, rows, columns, dim):
    tables = RelativeTables(largest, dim).double()
    q = torch.randn(2, rows, dim, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, rows, columns, dtype=torch.float64, requires_grad=True)
    distance = torch.arange(columns) - torch.arange(rows)[:, None]
    index = distance.clamp(-largest, largest) + largest
    inputs = [q, weights, tables.keys, tables.values]
    ours = tables.scores(q, distance, 7), tables.outputs(weights, distance, 7)
    theirs = (
        torch.einsum("bid,ijd->bij", q, tables.keys[index]),
        torch.einsum("bij,ijd->bid", weights, tables.values[index]),
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(
        torch.autograd.grad(sum(t.square().sum() for t in ours), inputs),
        torch.autograd.grad(sum(t.square().sum() for t in theirs), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="max_relative_position=0"):
        RelativeTables(0, 3)
    with pytest.raises(ValueError, match="dim=0"):
        RelativeTables(3, 0)
