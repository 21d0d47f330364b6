"""Kept prefixes: found again, never mixed up, dropped when memory is needed."""

import pytest

from shoestring.serving import BlockManager


def prefilled(manager, ids):
    table = []
    shared = manager.share_prefix(ids, table)
    assert manager.extend(table, len(ids))
    manager.keep_prefix(ids, table)
    return shared, table


def test_equal_beginnings_are_found_up_to_the_last_token():
    manager = BlockManager(10, 4)
    _, first = prefilled(manager, list(range(8)))
    shared, second = prefilled(manager, list(range(8)))
    # The last token must be computed, so its block cannot be shared.
    assert shared == 4
    assert second[0] == first[0]
    assert second[1] != first[1]


def test_a_block_means_all_tokens_up_to_it():
    manager = BlockManager(10, 2)
    prefilled(manager, [1, 2, 3, 4])
    assert prefilled(manager, [9, 2, 3, 4, 5])[0] == 0
    assert prefilled(manager, [3, 4, 5])[0] == 0
    assert prefilled(manager, [1, 2, 3, 4, 5])[0] == 4


def test_unused_kept_blocks_are_available_and_the_oldest_goes_first():
    manager = BlockManager(4, 2)
    for ids in ([1, 1], [2, 2], [3, 3]):
        manager.release(prefilled(manager, ids)[1])
    assert (manager.available, manager.used) == (4, 0)
    table = []
    assert manager.extend(table, 4)
    assert manager.share_prefix([1, 1, 1], []) == 0
    for ids in ([2, 2, 2], [3, 3, 3]):
        found = []
        assert manager.share_prefix(ids, found) == 2
        manager.release(found)
    assert not manager.extend(table, 10)
    assert len(table) == 2


def test_blocks_in_use_are_never_dropped():
    manager = BlockManager(2, 2)
    _, table = prefilled(manager, [1, 2, 3, 4])
    assert manager.available == 0
    assert not manager.extend([], 1)
    manager.release(table)
    assert manager.available == 2


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (4, -1)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="must be 1 or more"):
        BlockManager(*sizes)
