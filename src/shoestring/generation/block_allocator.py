"""Who holds which block of a paged KV cache: a free list and reference counts, no tensors."""

from shoestring.errors import ShoestringError


class OutOfBlocks(ShoestringError, RuntimeError):
    """All blocks of a cache are held; the message says how many there are."""


class FreedBlock(ShoestringError, ValueError):
    """A block table names a block that nobody holds."""


class BlockAllocator:
    """Blocks 0 .. n_blocks − 1, each held by any number of owners; the lowest free one is given first.

    Raises: ValueError for a negative number of blocks.
    """

    def __init__(self, n_blocks: int) -> None:
        if n_blocks < 0:
            raise ValueError(f"n_blocks={n_blocks} must be 0 or more.")
        self._holders = [0] * n_blocks
        # The last of the list is given next.
        self._free = list(range(n_blocks - 1, -1, -1))

    @property
    def n_blocks(self) -> int:
        """Blocks in all."""
        return len(self._holders)

    @property
    def n_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def holders(self, block: int) -> int:
        """How many hold this block; 0 if it is free."""
        return self._holders[block]

    def take(self) -> int:
        """A free block, now held once. Raises: OutOfBlocks."""
        if not self._free:
            raise OutOfBlocks(f"all {self.n_blocks} blocks are held; free some, or make the cache larger.")
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """One holder more. Raises: FreedBlock if there is none yet."""
        self.require_held(block)
        self._holders[block] += 1

    def release(self, block: int) -> bool:
        """One holder less; whether the block is free now. Raises: FreedBlock if it already was."""
        self.require_held(block)
        self._holders[block] -= 1
        if self._holders[block] == 0:
            self._free.append(block)
        return self._holders[block] == 0

    def require_held(self, block: int) -> None:
        """Raises: FreedBlock unless somebody holds this block."""
        if not 0 <= block < self.n_blocks or self._holders[block] == 0:
            raise FreedBlock(
                f"block {block} is not held (of {self.n_blocks}); a table must name held blocks."
            )

    def grow(self, n_blocks: int) -> None:
        """Make it `n_blocks` blocks; there are never fewer than before."""
        first = self.n_blocks
        self._free[:0] = range(n_blocks - 1, first - 1, -1)
        self._holders += [0] * (n_blocks - first)

    def clone(self) -> "BlockAllocator":
        """A copy with the same holders."""
        other = BlockAllocator(0)
        other._holders, other._free = list(self._holders), list(self._free)
        return other
