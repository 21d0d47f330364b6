"""Toy models of two other attention accelerators, on the same machine: what they read and what they compute.

Both read every key and value; they save arithmetic only. Figures of these models are modelled, not measured.

Sources: Ham et al. 2020, "A3: Accelerating Attention Mechanisms in Neural Networks with Approximation"
(candidates found by the largest products of single dimensions, from keys sorted by dimension beforehand);
Jang et al. 2019, "MnnFast: A Fast and Scalable System Architecture for Memory-Augmented Neural Networks"
(values of small probability are skipped).
"""

from collections.abc import Callable, Sequence

from shoestring.accelerators.attention_cycles import (
    DRAIN_CYCLES,
    AttentionMachine,
    Cycles,
    HeadWork,
    LayerWork,
    memory_cycles,
)


def a3_cycles(
    layers: Sequence[LayerWork],
    head_dim: int,
    *,
    iterations_share: float = 0.5,
    candidate_share: float = 0.5,
    bits: int = 8,
    machine: AttentionMachine = AttentionMachine(),  # noqa: B008  (frozen)
    overlap: bool = False,
) -> Cycles:
    """A3: all is read; a greedy search, then only candidates are multiplied.

    The search makes a step a cycle in each of as many units as there are keys multiplied in a cycle.
    iterations_share: steps of the search, candidate_share: candidates, both per key; the sorting beforehand
    is left out. Raises: ValueError for shares outside (0, 1].
    """
    _check(iterations_share=iterations_share, candidate_share=candidate_share)

    def computing(head: HeadWork, per_cycle: int) -> int:
        search = -(-int(iterations_share * head.keys) // per_cycle)
        return head.queries * (search + -(-int(candidate_share * head.keys) // per_cycle))

    return _cycles(layers, head_dim, computing, bits, machine, overlap)


def mnnfast_cycles(
    layers: Sequence[LayerWork],
    head_dim: int,
    *,
    value_share: float = 0.3,
    bits: int = 8,
    machine: AttentionMachine = AttentionMachine(),  # noqa: B008  (frozen)
    overlap: bool = False,
) -> Cycles:
    """MNNFast: all is read; the products of values below the threshold, all but `value_share`, are skipped.

    Raises: ValueError for a share outside (0, 1].
    """
    _check(value_share=value_share)

    def computing(head: HeadWork, per_cycle: int) -> int:
        keys, values = -(-head.keys // per_cycle), -(-int(value_share * head.keys) // per_cycle)
        # The two sets of multipliers work side by side when buffered, else one after the other.
        return head.queries * (max(keys, values) if overlap else keys + values)

    return _cycles(layers, head_dim, computing, bits, machine, overlap)


def _cycles(
    layers: Sequence[LayerWork],
    head_dim: int,
    computing: Callable[[HeadWork, int], float],
    bits: int,
    machine: AttentionMachine,
    overlap: bool,
) -> Cycles:
    per_cycle = machine.keys_per_cycle(head_dim)
    found = []
    for work in layers:
        memory = fill = total = 0.0
        for head in work.heads:
            whole = HeadWork(head.keys, head.keys, head.queries)
            read, filling = memory_cycles(whole, head_dim, bits, 0, bits, machine), computing(head, per_cycle)
            memory, fill = memory + read, fill + filling
            total += max(read, filling) if overlap else read + filling
        drain = DRAIN_CYCLES + max(-(-head.keys // per_cycle) for head in work.heads)
        found.append(Cycles(memory, fill, 0.0, drain, total + drain))
    return Cycles.sum(found)


def _check(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise ValueError(f"{name}={share} must be above 0 and at most 1.")
