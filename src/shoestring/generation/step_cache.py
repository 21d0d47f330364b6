"""What the compiled decode step asks of a cache that it reads and writes by itself."""

from collections.abc import Mapping

from torch import Tensor

from shoestring.generation.slot_cache import TOKENS, LayerStore, SlotCache
from shoestring.generation.slot_table import SlotTable
from shoestring.layers.state import State


class ColumnStore:
    """Keys and values of one layer as columns of its slot table and nothing else.

    What is done to slots is done to the table; `append`, `keys_values`, `clone` and sizes differ by kind.
    """

    def __init__(self, table: SlotTable) -> None:
        self.table = table

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names: keys, values, positions, and what else it fills."""
        raise NotImplementedError

    def gather(self, keep: Tensor) -> None:
        self.table.gather(keep)

    def truncate(self, counts: Tensor) -> None:
        self.table.truncate(counts)

    def permute(self, start: Tensor, order: Tensor) -> None:
        self.table.permute(start, order)

    def reorder(self, samples: Tensor) -> None:
        self.table.reorder(samples)


class StepCache(SlotCache):
    """A cache of `ColumnStore`s: slots may be claimed and written by others."""

    @property
    def step_layers(self) -> list[LayerStore]:
        """The layers that hold keys and values."""
        return self.layers

    def plain_slots(self) -> int | None:
        """The slots of every layer, where slot i of each holds the token at position i and nothing else is
        kept beside keys and values; None where tokens were evicted, reordered or left out, or samples differ
        in length."""
        seen, last = (int(x) for x in self.next_pos.aminmax())
        # As many slots as positions so far: none is missing.
        return seen if self._uniform_slots() == seen == last else None

    def alike_slots(self) -> int | None:
        """The slots of every layer of one sequence, where each holds equally many, in the order of their
        positions, in one row for all heads, and nothing else is kept beside keys and values but how many
        tokens a slot stands for; else None."""
        return self._uniform_slots() if self.batch == 1 else None

    def _uniform_slots(self) -> int | None:
        tables = [layer.table for layer in self.step_layers]
        # How many tokens a slot stands for is written by `claim`, other columns are not.
        slots, known = tables[0].uniform if tables else int(self.next_pos[0]), {*self._columns(), TOKENS}
        plain = all(
            table.uniform == slots and table.rows == 1 and known.issuperset(table.columns) for table in tables
        )
        return slots if plain and not self.permuted else None

    def claim(self, n: int, skipped: int = 0) -> None:
        """Count `n` more slots as filled, and as many positions and those `skipped` before them: the caller
        writes the slots, keys rotated, there."""
        for layer in self.step_layers:
            layer.table.claim(n)
            if TOKENS in layer.table.columns:
                layer.table.read(TOKENS)[..., -n:] = 1
        self.next_pos, self._last_pos = self.next_pos + (n + skipped), None

    def give_back(self, n: int) -> None:
        """Take back the claim of the last `n` slots."""
        for layer in self.step_layers:
            layer.table.unclaim(n)
        self.next_pos, self._last_pos = self.next_pos - n, None

    def storage(self) -> list[dict[str, Tensor]]:
        """Of each layer with keys and values: its columns by name, (batch, heads or 1, capacity, …), as they
        are allocated now; a growing cache allocates anew."""
        names = self._columns()
        return [{name: layer.table.columns[name].data for name in names} for layer in self.step_layers]

    def own_states(self) -> Mapping[int, State]:
        """The states that layers keep instead of keys and values, by layer, free to be written."""
        return {}

    def count_reads(self) -> None:
        """Note in `traffic` that all keys and values of all layers are read once."""
        for layer in self.step_layers:
            self.traffic.count(*layer.read_bits)

    def _columns(self) -> tuple[str, ...]:
        if not self.step_layers:
            return ()
        first = self.step_layers[0]
        assert isinstance(first, ColumnStore)
        return first.columns


class StorageWatch:
    """Notices when what a cache holds has moved, as it does when it grows: who was told where it is must be
    told again."""

    def __init__(self, cache: StepCache) -> None:
        self._cache = cache
        self._held: list[Tensor] = []

    def moved(self) -> bool:
        """Whether it has since the last call; True at the first one."""
        states = self._cache.own_states().values()
        held = [columns["k"] for columns in self._cache.storage()] + [state["ssm"] for state in states]
        same = len(held) == len(self._held) and all(a is b for a, b in zip(held, self._held, strict=True))
        self._held = held
        return not same or not held
