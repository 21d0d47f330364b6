"""Sums of attention by column, compiled, against their definition: odd shapes, windows, threads, ISAs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels import column_sums as module
from shoestring.kernels.column_sums import compiled_column_sums, naive_column_sums, rows_that_see
from shoestring.yardstick.flops import CostCounter

# Optimised less: these builds are for one test, which is not about time.
LESSER = {"avx2": ("-mno-avx512f", "-O1"), "portable": ("-march=x86-64", "-O1")}


def drawn(seed, heads, kv, rows, slots, dim):
    """Queries and keys whose scores are neither flat nor all on one key, and positions in any order."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(h, n, dim, generator=generator) for h, n in ((heads, rows), (kv, slots)))
    key_pos = torch.randperm(slots, generator=generator) if seed % 2 else torch.arange(slots)
    # Each row at the place of some key, so that none is blind.
    return q, k, torch.randint(slots, (rows,), generator=generator), key_pos


def check(q, k, row_pos, key_pos, scale, window):
    found, counts = compiled_column_sums(q, k, row_pos, key_pos, scale, window)
    expected, expected_counts = naive_column_sums(q, k, row_pos, key_pos, scale, window)
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)
    assert torch.equal(counts, expected_counts)
    return found


@given(
    kv=st.integers(1, 3),
    group=st.integers(1, 3),
    rows=st.integers(1, 70),
    slots=st.one_of(st.integers(1, 70), st.integers(100, 300)),
    dim=st.sampled_from([1, 3, 16, 37]),
    window=st.sampled_from([None, 1, 5, 90]),
    seed=st.integers(0, 99),
)
def test_it_is_the_definition(kv, group, rows, slots, dim, window, seed):
    check(*drawn(seed, kv * group, kv, rows, slots, dim), 1.5 * dim**-0.5, window)


def test_many_blocks_share_parts():
    """More blocks of a head than parts."""
    check(*drawn(1, 3, 1, 400, 400, 8), 0.5, None)


def test_keys_may_lie_in_a_longer_table():
    q, k, row_pos, key_pos = drawn(2, 4, 2, 20, 70, 16)
    table = torch.full((2, 100, 16), torch.nan)
    table[:, :70] = k
    a, b = (compiled_column_sums(q, x, row_pos, key_pos, 0.3)[0] for x in (k, table[:, :70]))
    assert torch.equal(a, b)


def test_results_do_not_depend_on_the_number_of_threads():
    inputs = drawn(3, 9, 3, 128, 333, 64)
    results = [compiled_column_sums(*inputs, 0.2, threads=threads)[0] for threads in (1, 2, 3, 7)]
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("flags", LESSER.values(), ids=LESSER)
def test_every_instruction_set_agrees(flags, monkeypatch):
    inputs = drawn(4, 6, 2, 50, 131, 20)
    expected = compiled_column_sums(*inputs, 0.3)[0]
    library = module.load_library
    monkeypatch.setattr(module, "load_library", lambda path, extra_flags: library(path, extra_flags=flags))
    monkeypatch.setattr(module, "_library", module._library.__wrapped__)
    torch.testing.assert_close(check(*inputs, 0.3, None), expected)


def test_large_scores_do_not_overflow():
    q, k, row_pos, key_pos = drawn(5, 2, 1, 30, 90, 8)
    check(40 * q, 40 * k, row_pos, key_pos, 1.0, None)


def test_rows_that_see_a_key():
    row_pos, key_pos = torch.tensor([1, 4, 4, 6]), torch.tensor([0, 1, 2, 5, 7])
    assert rows_that_see(row_pos, key_pos).tolist() == [4, 4, 3, 1, 0]
    assert rows_that_see(row_pos, key_pos, 3).tolist() == [1, 1, 2, 1, 0]


def test_the_cost_is_a_product_for_each_pair_that_is_seen():
    q, k, row_pos, key_pos = drawn(6, 4, 2, 9, 40, 16)
    with CostCounter() as counter:
        _, counts = compiled_column_sums(q, k, row_pos, key_pos, 0.3)
    assert counter.flops_by_operation["column_sums"] == 2 * 4 * 16 * int(counts.sum())
    assert counter.bytes_by_operation["column_sums"] == 4 * (4 * 9 * 16 + 2 * 40 * 16 + 2 * 40)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.ones(3, 2, 4)}, ValueError, "3 query heads are no multiple of 2"),
        ({"window": 0}, ValueError, "window=0 must be 1 or more"),
        ({"row_pos": torch.tensor([0, -1])}, ValueError, "a row sees no key"),
        ({"row_pos": torch.tensor([0, 3]), "key_pos": torch.tensor([0, 1, 9, 9, 9]), "window": 2}, ValueError,
         "a row sees no key"),
        ({"k": torch.ones(2, 0, 4), "key_pos": torch.arange(0)}, ValueError, "a row sees no key"),
        ({"key_pos": torch.arange(4)}, ValueError, "at 4 do not go together"),
        ({"q": torch.ones(4, 2, 4, dtype=torch.float64)}, TypeError, "q is torch.float64 on cpu"),
    ],
)  # fmt: skip
def test_what_has_no_sums_is_refused(change, error, message):
    inputs = {
        "q": torch.ones(4, 2, 4), "k": torch.ones(2, 5, 4), "row_pos": torch.tensor([3, 4]),
        "key_pos": torch.arange(5), "scale": 0.5, **change,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        compiled_column_sums(**inputs)
