"""SpAtten's accelerator in its cycle model, beside the same machine without pruning and two toy rivals."""

from typing import Any

from shoestring.accelerators import (
    Cycles,
    HeadWork,
    LayerWork,
    a3_cycles,
    attention_cycles,
    attention_operations,
    energy_joules,
    mnnfast_cycles,
)
from shoestring.generation.spatten import gpt2_medium_heads, gpt2_medium_tokens
from shoestring.kernels.top_k_engine import mean_cycles
from shoestring.systems.spatten.claims import CYCLES_ADDED, CYCLES_MEMORY, CYCLES_OVERLAPPED, TOP_K
from shoestring.yardstick.comparison import Row

LENGTH, HEAD_DIM, LAYERS, HEADS = 1024, 64, 24, 16
V_KEEP, LOW_SHARE = 0.3, 0.06
OURS: dict[str, Any] = {"key_bits": 8, "low_bits": 4, "value_bits": 8}
PLAIN: dict[str, Any] = {"key_bits": 12, "value_bits": 8}


def pruned_work() -> list[LayerWork]:
    """The published schedule as plain data."""
    tokens, heads = gpt2_medium_tokens(LENGTH).counts, gpt2_medium_heads().counts
    following = [*tokens[1:], tokens[-1]]
    return [
        LayerWork((HeadWork(n, int(V_KEEP * n), low_share=LOW_SHARE),) * h, after)
        for n, h, after in zip(tokens, heads, following, strict=True)
    ]


def cycle_rows(trials: int) -> tuple[list[Row], list[str]]:
    """Rows and notes. trials: random orders for the mean cycles of the search."""
    ours, plain = pruned_work(), [LayerWork((HeadWork(LENGTH, LENGTH),) * HEADS)] * LAYERS
    added, overlapped = (
        tuple(
            attention_cycles(work, HEAD_DIM, overlap=overlap, **bits)
            for work, bits in ((plain, PLAIN), (ours, OURS))
        )
        for overlap in (False, True)
    )
    one, many = (mean_cycles(LENGTH, int(V_KEEP * LENGTH), comparators=c, trials=trials)[0] for c in (1, 16))
    rows = [
        CYCLES_MEMORY.row(baseline=added[0].memory, method=added[1].memory),
        CYCLES_OVERLAPPED.row(baseline=overlapped[0].total, method=overlapped[1].total),
        CYCLES_ADDED.row(baseline=added[0].total, method=added[1].total),
        TOP_K.row(baseline=one, method=many, against="one comparator"),
    ]
    rows += [
        _against(name, rival(plain, HEAD_DIM, overlap=True), overlapped[1])
        for name, rival in (("A3", a3_cycles), ("MNNFast", mnnfast_cycles))
    ]
    energy = [
        energy_joules(attention_operations(work, HEAD_DIM, **bits))
        for work, bits in ((plain, PLAIN), (ours, OURS))
    ]
    rows.append(
        Row(
            metric="energy of a query, modelled", kind="energy", unit="J", better="lower", baseline=energy[0],
            method=energy[1],
        )
    )  # fmt: skip
    notes = [
        "A3 and MNNFast are toy models on the same machine, 8 bits; figures and energy are modelled",
        f"the top-k engine takes {added[1].top_k / added[1].total:.0%} of the cycles that are added up",
    ]
    return rows, notes


def _against(name: str, theirs: Cycles, ours: Cycles) -> Row:
    return Row(
        metric=f"all cycles, overlapped, against a toy {name}, modelled", kind="compute", unit="cycles",
        better="lower", baseline=theirs.total, method=ours.total, against=name,
    )  # fmt: skip
