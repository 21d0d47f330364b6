"""Blocks for requests, and full blocks kept after their request for others that begin alike.

A kept block is known by the block before it and its own token ids, so that equal means equal, not of equal
hash. Kept blocks that nobody uses count as available; the one that was used longest ago goes first.
"""

from collections import OrderedDict
from collections.abc import Sequence

from shoestring.generation.block_allocator import BlockAllocator

_Key = tuple[int, tuple[int, ...]]
_ROOT = 0


class BlockManager:
    """n_blocks blocks of `slots` tokens. Raises: ValueError for sizes below 1."""

    def __init__(self, n_blocks: int, slots: int) -> None:
        if n_blocks < 1 or slots < 1:
            raise ValueError(f"n_blocks={n_blocks} of slots={slots} tokens: both must be 1 or more.")
        self.blocks, self.slots = BlockAllocator(n_blocks), slots
        # From the longest unused to the last used; the value is (block, number of this entry).
        self._kept: OrderedDict[_Key, tuple[int, int]] = OrderedDict()
        self._numbers = 0

    @property
    def n_blocks(self) -> int:
        """Blocks in all."""
        return self.blocks.n_blocks

    @property
    def available(self) -> int:
        """Blocks that can be had now: free ones, and kept ones that no request uses."""
        return self.blocks.n_free + sum(self._unused(block) for block, _ in self._kept.values())

    @property
    def used(self) -> int:
        """Blocks that requests hold; a shared one counts once."""
        return self.n_blocks - self.available

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.slots)

    def extend(self, table: list[int], tokens: int) -> bool:
        """Add blocks to a table until it holds so many tokens; False, and nothing done, where there are too
        few.
        """
        missing = self.blocks_for(tokens) - len(table)
        if missing <= 0:
            return True
        if missing > self.blocks.n_free and missing > self.available:
            return False
        while self.blocks.n_free < missing:
            self._drop_oldest()
        table += [self.blocks.take() for _ in range(missing)]
        return True

    def release(self, table: list[int]) -> None:
        """Give all blocks of a table back."""
        for block in table:
            self.blocks.release(block)
        table.clear()

    def share_prefix(self, token_ids: Sequence[int], table: list[int]) -> int:
        """Begin an empty table with kept blocks of these tokens; how many tokens they hold, never all of
        them: the last token must be computed to get what follows it.
        """
        parent = _ROOT
        for start in range(0, len(token_ids) - self.slots, self.slots):
            key = parent, tuple(token_ids[start : start + self.slots])
            if key not in self._kept:
                break
            block, parent = self._kept[key]
            self._kept.move_to_end(key)
            self.blocks.share(block)
            table.append(block)
        return len(table) * self.slots

    def keep_prefix(self, token_ids: Sequence[int], table: Sequence[int]) -> None:
        """Keep full blocks of these tokens, whose keys and values are computed, for others."""
        parent = _ROOT
        for number in range(len(token_ids) // self.slots):
            key = parent, tuple(token_ids[number * self.slots : (number + 1) * self.slots])
            if key not in self._kept:
                self._numbers += 1
                self._kept[key] = table[number], self._numbers
                self.blocks.share(table[number])
            self._kept.move_to_end(key)
            parent = self._kept[key][1]

    def _unused(self, block: int) -> bool:
        return self.blocks.holders(block) == 1

    def _drop_oldest(self) -> None:
        key = next(key for key, (block, _) in self._kept.items() if self._unused(block))
        block, _ = self._kept.pop(key)
        self.blocks.release(block)
