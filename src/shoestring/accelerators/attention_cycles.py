"""Clock cycles of an attention accelerator: memory, multipliers and top-k engine, layer by layer.

Per head, with P = multipliers / d keys a cycle and b = ⌈keys / P⌉:
  memory  ⌈b P d bits_K / port⌉ + refetch · ⌈b P d bits_L / port⌉ + ⌈⌈values / P⌉ P d bits_V / port⌉
  fill    queries · b
  top-k   search and filter of `top_k_engine`, and b to fill and ⌈k / P⌉ to drain it
and once per layer the pipeline drains: 11 + 87 + b + 5.

Source: Wang et al. 2021, "SpAtten", section IV, and its published behaviour model, which adds all of it up;
`overlap` takes the largest of memory, fill and search per head instead, as double buffers do. The published
model reads as many values as keys, and widths of 6, 10 and 12 bits as 8 with a refetch; here values are
counted as they are pruned, and widths are taken as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from shoestring.kernels.top_k_engine import COMPARATORS, mean_cycles

DRAIN_CYCLES = 11 + 87 + 1 + 1 + 3
"""SRAM 1, multiply 1, adder tree 9; dequantise 7, exp 21, accumulate 23, divide 29, quantise 7; the end 5."""


@dataclass(frozen=True)
class AttentionMachine:
    """The published machine. multipliers: for q·k, and as many for p·v.

    Raises: ValueError for sizes below 1.
    """

    channels: int = 16
    transaction_bytes: int = 32
    multipliers: int = 512
    comparators: int = COMPARATORS
    clock_mhz: float | int = 1000

    def __post_init__(self) -> None:
        for name in ("channels", "transaction_bytes", "multipliers", "comparators", "clock_mhz"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more.")

    @property
    def port_bytes(self) -> int:
        """Bytes that memory gives in a cycle."""
        return self.channels * self.transaction_bytes

    def keys_per_cycle(self, head_dim: int) -> int:
        """Keys multiplied in a cycle. Raises: ValueError where head_dim does not divide the multipliers."""
        if head_dim < 1 or self.multipliers % head_dim:
            raise ValueError(
                f"head_dim={head_dim} does not divide {self.multipliers} multipliers; use a divisor of it, "
                "or pad the heads to one."
            )
        return self.multipliers // head_dim


@dataclass(frozen=True)
class HeadWork:
    """What one head reads. keys, values: rows; low_share: part of the queries that read the low key bits too.

    Fewer values than keys are chosen by the top-k engine. Raises: ValueError for counts or shares that cannot
    be.
    """

    keys: int
    values: int
    queries: int = 1
    low_share: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.values <= self.keys or self.queries < 1:
            raise ValueError(
                f"keys={self.keys}, values={self.values}, queries={self.queries}: there must be at least one "
                "of each, and no more values than keys."
            )
        if not 0 <= self.low_share <= 1:
            raise ValueError(f"low_share={self.low_share} must be from 0 to 1.")


@dataclass(frozen=True)
class LayerWork:
    """heads: those that run. next_keys: tokens that the next layer keeps (None, or as many: no choice)."""

    heads: tuple[HeadWork, ...]
    next_keys: int | None = None


@dataclass(frozen=True)
class Cycles:
    """memory, fill, top_k, drain: of each part by itself; total: how they add up."""

    memory: float | int
    fill: float | int
    top_k: float | int
    drain: float | int
    total: float | int

    def seconds(self, machine: AttentionMachine) -> float:
        """At the machine's clock."""
        return self.total / (machine.clock_mhz * 1e6)

    @staticmethod
    def sum(parts: Sequence["Cycles"]) -> "Cycles":
        """All parts, one after the other."""
        return Cycles(
            *(sum(getattr(c, f) for c in parts) for f in ("memory", "fill", "top_k", "drain", "total"))
        )


def attention_cycles(
    layers: Sequence[LayerWork],
    head_dim: int,
    *,
    key_bits: int,
    low_bits: int = 0,
    value_bits: int = 8,
    machine: AttentionMachine = AttentionMachine(),
    overlap: bool = False,
) -> Cycles:
    """Cycles of one pass through these layers.

    key_bits: of a key that are always read; low_bits: the rest. overlap: see above.

    Raises: ValueError for widths below 1 (low_bits: below 0) or a head_dim that does not fit the machine.
    """
    if key_bits < 1 or value_bits < 1 or low_bits < 0:
        raise ValueError(
            f"key_bits={key_bits}, value_bits={value_bits} must be 1 or more, low_bits={low_bits} 0 or more."
        )
    per_cycle = machine.keys_per_cycle(head_dim)
    return Cycles.sum(
        [
            _layer(work, head_dim, (key_bits, low_bits, value_bits), machine, per_cycle, overlap)
            for work in layers
        ]
    )


def _layer(
    work: LayerWork,
    head_dim: int,
    bits: tuple[int, int, int],
    machine: AttentionMachine,
    per_cycle: int,
    overlap: bool,
) -> Cycles:
    memory = fill = top_k = total = 0.0
    rows = [-(-head.keys // per_cycle) for head in work.heads]
    for head, b in zip(work.heads, rows, strict=True):
        read = memory_cycles(head, head_dim, *bits, machine)
        search, packing = 0.0, 0
        if head.values < head.keys:
            search = head.queries * search_cycles(head.keys, head.values, machine.comparators)
            packing = head.queries * (b + -(-head.values // per_cycle))
        filling = head.queries * b
        memory, fill, top_k = memory + read, fill + filling, top_k + search + packing
        total += max(read, filling, search) if overlap else read + filling + search + packing
    keys = max(head.keys for head in work.heads)
    if work.next_keys is not None and work.next_keys < keys:
        # The next layer waits for this choice: it overlaps with nothing.
        choice = search_cycles(keys, work.next_keys, machine.comparators)
        choice += -(-keys // per_cycle) + -(-work.next_keys // per_cycle)
        top_k, total = top_k + choice, total + choice
    drain = DRAIN_CYCLES + max(rows)
    return Cycles(memory, fill, top_k, drain, total + drain)


def memory_cycles(
    head: HeadWork, head_dim: int, key_bits: int, low_bits: int, value_bits: int, machine: AttentionMachine
) -> float:
    """Cycles of reading one head's keys and values, in whole rows of the multipliers."""
    per_cycle = machine.keys_per_cycle(head_dim)

    def transfers(rows: int, bits: int) -> int:
        bits_read = -(-rows // per_cycle) * per_cycle * head_dim * bits
        return -(-bits_read // (8 * machine.port_bytes))

    low = head.low_share * transfers(head.keys, low_bits)
    return transfers(head.keys, key_bits) + low + transfers(head.values, value_bits)


@cache
def search_cycles(n: int, k: int, comparators: int) -> float:
    """Mean cycles of search and filter over random values."""
    search, filtering = mean_cycles(n, k, comparators=comparators, trials=50)
    return search + filtering
