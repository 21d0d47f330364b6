"""The cycle model against its formula, and what it says of the published schedule."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.accelerators import (
    AttentionMachine,
    EnergyTable,
    HeadWork,
    LayerWork,
    a3_cycles,
    attention_cycles,
    attention_operations,
    energy_joules,
    mnnfast_cycles,
)
from shoestring.accelerators.attention_cycles import memory_cycles, search_cycles


@given(
    keys=st.integers(1, 300), share=st.floats(0.01, 1), d=st.sampled_from([1, 2, 16, 64, 512]),
    bits=st.sampled_from([4, 6, 8, 12]), low=st.sampled_from([0, 4]),
    refetch=st.sampled_from([0.0, 0.06, 1.0]),
)  # fmt: skip
def test_memory_cycles_are_the_formula(keys, share, d, bits, low, refetch):
    head = HeadWork(keys, max(1, int(share * keys)), low_share=refetch)
    per_cycle = 512 // d
    b, b_values = math.ceil(keys / per_cycle), math.ceil(head.values / per_cycle)
    expected = math.ceil(b * per_cycle * d * bits / 8 / 32 / 16)
    expected += refetch * math.ceil(b * per_cycle * d * low / 8 / 32 / 16)
    expected += math.ceil(b_values * per_cycle * d * 8 / 8 / 32 / 16)
    assert memory_cycles(head, d, bits, low, 8, AttentionMachine()) == pytest.approx(expected)


def test_one_layer_by_hand():
    work = [LayerWork((HeadWork(1024, 307),) * 2, next_keys=512)]
    found = attention_cycles(work, 64, key_bits=8, value_bits=8)
    memory = 2 * (128 + 39)  # 8 keys a cycle; a cycle of multipliers is a cycle of memory in 8 bits
    search = 2 * (search_cycles(1024, 307, 16) + 128 + 39) + search_cycles(1024, 512, 16) + 128 + 64
    assert (found.memory, found.fill, found.drain) == (memory, 256, 11 + 87 + 128 + 5)
    assert found.top_k == pytest.approx(search)
    assert found.total == pytest.approx(memory + 256 + search + found.drain)
    overlapped = attention_cycles(work, 64, key_bits=8, value_bits=8, overlap=True)
    largest = max(128 + 39, 128, search_cycles(1024, 307, 16))
    assert overlapped.total == pytest.approx(2 * largest + search_cycles(1024, 512, 16) + 192 + found.drain)
    assert found.seconds(AttentionMachine(clock_mhz=500)) == pytest.approx(found.total / 5e8)


def test_no_choice_costs_nothing():
    work = [LayerWork((HeadWork(100, 100),), next_keys=100)]
    assert attention_cycles(work, 64, key_bits=12).top_k == 0


def test_rivals_read_everything():
    work = [LayerWork((HeadWork(1024, 307),) * 16)] * 2
    whole = attention_cycles([LayerWork((HeadWork(1024, 1024),) * 16)] * 2, 64, key_bits=8)
    for rival in (a3_cycles, mnnfast_cycles):
        assert rival(work, 64).memory == whole.memory
        assert rival(work, 64, overlap=True).total < rival(work, 64).total
    assert mnnfast_cycles(work, 64).fill < 2 * whole.fill


def test_energy_is_counts_times_costs():
    work = [LayerWork((HeadWork(10, 4, low_share=0.5),), next_keys=5)]
    counts = attention_operations(work, 8, key_bits=6, low_bits=4, value_bits=8)
    assert counts.dram_bits == 8 * (10 * 8 + 4 * 8)
    assert counts.macs == {10: 1.5 * 10 * 8, 8: 4 * 8}
    assert (counts.exps, counts.divides) == (15, 10)
    assert counts.compares == pytest.approx(3.4 * 20)
    table = EnergyTable(dram_bit=1, sram_bit=0, mac={10: 2.0, 8: 1.0}, exp=0, divide=0, compare=0)
    assert energy_joules(counts, table) == pytest.approx((896 + 240 + 32) * 1e-12)
    assert energy_joules(counts) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AttentionMachine().keys_per_cycle(48), "head_dim=48 does not divide 512 multipliers"),
        (lambda: AttentionMachine(channels=0), "channels=0"),
        (lambda: HeadWork(3, 4), "no more values than keys"),
        (lambda: HeadWork(3, 3, low_share=2.0), "low_share=2.0"),
        (lambda: attention_cycles([], 64, key_bits=0), "key_bits=0"),
        (lambda: a3_cycles([], 64, candidate_share=0.0), "candidate_share=0.0"),
        (lambda: mnnfast_cycles([], 64, value_share=2.0), "value_share=2.0"),
        (lambda: EnergyTable(exp=-1.0), "exp=-1.0"),
        (lambda: EnergyTable(mac={8: -1.0}), "in 8 bits"),
        (
            lambda: energy_joules(
                attention_operations([LayerWork((HeadWork(1, 1),))], 1, key_bits=3), EnergyTable()
            ),
            "no multiply-accumulate in 3 bits",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
