"""Resident memory of fresh processes: what a step allocates is found again."""

import sys
import textwrap

import pytest

from shoestring.yardstick.process_memory import ResidentMemory, resident_memory

MIB = 2**20


@pytest.fixture
def module(tmp_path, monkeypatch):
    """An importable module of experiments, seen by the children as well."""
    (tmp_path / "sample_experiments.py").write_text(
        textwrap.dedent("""
        import json

        def allocate(prepared_mib, step_mib):
            kept = bytearray(b"x") * (prepared_mib * 2**20)
            def step():
                return len(kept), bytearray(b"y") * (step_mib * 2**20)
            return step

        def count_calls(path):
            def step():
                with open(path, "a") as file:
                    file.write("step ")
            return step

        def fail():
            raise ValueError("no such experiment")

        class Holder:
            @staticmethod
            def allocate():
                return lambda: None
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import sample_experiments

    yield sample_experiments
    del sys.modules["sample_experiments"]


def test_the_step_is_told_from_the_preparation(module):
    found = resident_memory(module.allocate, prepared_mib=40, step_mib=25)
    # a little less than 25 is right too: pages that the preparation has freed serve the step
    assert 24.5 * MIB <= found.step_bytes <= 28 * MIB
    assert found.prepared_bytes >= 40 * MIB
    assert found.peak_bytes == found.prepared_bytes + found.step_bytes


def test_the_size_of_this_process_does_not_count(module):
    ballast = bytearray(b"z") * (300 * MIB)
    found = resident_memory(module.allocate, prepared_mib=1, step_mib=1)
    assert found.peak_bytes < 100 * MIB
    del ballast


def test_one_warm_up_and_one_step_and_none_while_preparing(module, tmp_path):
    resident_memory(module.count_calls, path=str(tmp_path / "calls"))
    assert (tmp_path / "calls").read_text() == "step step "


def test_methods_are_found_too(module):
    assert resident_memory(module.Holder.allocate).step_bytes < MIB


def test_errors(module):
    with pytest.raises(RuntimeError, match="sample_experiments:fail: .*ValueError: no such experiment"):
        resident_memory(module.fail)
    with pytest.raises(ValueError, match="define it at the top level of a module"):
        resident_memory(lambda: lambda: None)
    with pytest.raises(TypeError, match="not JSON serializable"):
        resident_memory(module.allocate, prepared_mib=object())


def test_a_mark_below_the_preparation_is_no_negative_step():
    assert ResidentMemory(prepared_bytes=10, peak_bytes=8).step_bytes == 0
