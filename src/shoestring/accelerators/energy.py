"""Energy of attention: counted operations times what each costs.

The default costs are assumptions, not figures of any accelerator's paper: memory from O'Connor et al. 2017,
"Fine-Grained DRAM" (HBM2, 3.9 pJ a bit); multiplications and additions from Horowitz 2014, "Computing's
Energy Problem" (45 nm; 0.2 pJ and 0.03 pJ in 8 bits), the product taken to grow with the square of the width;
the rest in proportion. Give a table of your own process for absolute figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shoestring.accelerators.attention_cycles import LayerWork


def _mac_picojoules() -> dict[int, float]:
    return {bits: 0.2 * (bits / 8) ** 2 + 0.03 * bits / 8 for bits in (4, 6, 8, 10, 12, 16, 32)}


@dataclass(frozen=True)
class EnergyTable:
    """Picojoules: of a bit from memory and from SRAM, of a multiply-accumulate by width, of other operations.

    Raises: ValueError for a negative cost.
    """

    dram_bit: float | int = 3.9
    sram_bit: float | int = 0.16
    mac: Mapping[int, float] = field(default_factory=_mac_picojoules)
    exp: float | int = 5.0
    divide: float | int = 5.0
    compare: float | int = 0.05

    def __post_init__(self) -> None:
        for name in ("dram_bit", "sram_bit", "exp", "divide", "compare"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} pJ must be 0 or more.")
        for bits, cost in self.mac.items():
            if cost < 0:
                raise ValueError(f"mac={cost} pJ in {bits} bits must be 0 or more.")


@dataclass(frozen=True)
class OperationCounts:
    """macs: by width."""

    dram_bits: float
    sram_bits: float
    macs: Mapping[int, float]
    exps: float
    divides: float
    compares: float


def attention_operations(
    layers: Sequence[LayerWork], head_dim: int, *, key_bits: int, low_bits: int = 0, value_bits: int = 8
) -> OperationCounts:
    """What attention over these layers reads and computes. Products with keys have the width of a whole key.

    A bit from memory is written to SRAM and read from it once. The top-k engine compares about 3.4 times the
    length it chooses from, the filter's pass included (quick-select, Knuth 1972, at the middle).
    """
    dram = exps = divides = compares = key_macs = value_macs = 0.0
    for work in layers:
        for head in work.heads:
            dram += head_dim * (head.keys * (key_bits + head.low_share * low_bits) + head.values * value_bits)
            passes = head.queries * (1 + (head.low_share if low_bits else 0.0))
            key_macs += passes * head.keys * head_dim
            value_macs += head.queries * head.values * head_dim
            exps += passes * head.keys
            divides += head.queries * head.keys
            compares += QUICK_SELECT * head.queries * head.keys if head.values < head.keys else 0.0
        keys = max(head.keys for head in work.heads)
        if work.next_keys is not None and work.next_keys < keys:
            compares += QUICK_SELECT * keys
    macs = {key_bits + low_bits: key_macs}
    macs[value_bits] = macs.get(value_bits, 0.0) + value_macs
    return OperationCounts(dram, 2 * dram, macs, exps, divides, compares)


QUICK_SELECT = 1 + 2.4
"""Comparisons for each value: the filter's pass and the search's."""


def energy_joules(counts: OperationCounts, table: EnergyTable | None = None) -> float:
    """Counts times costs. Raises: ValueError for a width that the table does not list."""
    table = table or EnergyTable()
    if missing := [bits for bits in counts.macs if bits not in table.mac]:
        raise ValueError(f"the table has no multiply-accumulate in {missing[0]} bits; add it to `mac`.")
    picojoules = (
        counts.dram_bits * table.dram_bit
        + counts.sram_bits * table.sram_bit
        + sum(count * table.mac[bits] for bits, count in counts.macs.items())
        + counts.exps * table.exp
        + counts.divides * table.divide
        + counts.compares * table.compare
    )
    return float(picojoules) * 1e-12
