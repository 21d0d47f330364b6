"""Latencies by their definitions."""

import pytest

from shoestring.serving import RequestTimes, summarise


def test_metrics_are_those_of_their_definitions():
    requests = [RequestTimes(0.0, [1.0, 1.5, 3.0]), RequestTimes(1.0, [4.0])]
    found = summarise(requests, failed=2)
    assert (found["completed"], found["failed"]) == (2, 2)
    assert found["mean_ttft"] == pytest.approx(2.0)
    assert found["mean_tpot"] == pytest.approx(1.0)  # one token has no time between tokens
    assert found["p50_itl"] == pytest.approx(1.0)
    assert found["p99_e2el"] == pytest.approx(3.0)
    assert found["request_throughput"] == pytest.approx(2 / 4)
    assert found["output_throughput"] == pytest.approx(4 / 4)


def test_nothing_completed_is_no_error():
    assert summarise([]) == {"completed": 0, "failed": 0}
