"""What serving was like for those who waited, under vLLM's names.

ttft: first token − arrival. itl: every gap between two tokens of a request. tpot: (last − first
token)/(tokens − 1), of requests of two tokens or more. e2el: last token − arrival.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

PERCENTILES = (50, 90, 99)


@dataclass
class RequestTimes:
    """When a request arrived and when its tokens came, in seconds on any clock."""

    arrived: float
    tokens: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """Time to the first token."""
        return self.tokens[0] - self.arrived

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies."""
        return [later - earlier for earlier, later in zip(self.tokens, self.tokens[1:], strict=False)]


def summarise(requests: Iterable[RequestTimes], failed: int = 0) -> dict[str, int | float]:
    """Means and percentiles in seconds, throughput over the span from the first arrival to the last token.

    requests: those that were completed. failed: how many were not. Percentiles are interpolated linearly.
    """
    done = [request for request in requests if request.tokens]
    found: dict[str, int | float] = {"completed": len(done), "failed": failed}
    if not done:
        return found
    several = [request for request in done if len(request.tokens) > 1]
    values = {
        "ttft": [request.ttft for request in done],
        "tpot": [(r.tokens[-1] - r.tokens[0]) / (len(r.tokens) - 1) for r in several],
        "itl": [gap for request in several for gap in request.gaps],
        "e2el": [request.tokens[-1] - request.arrived for request in done],
    }
    for name, times in values.items():
        if times:
            found[f"mean_{name}"] = float(np.mean(times))
            found |= {f"p{q}_{name}": float(np.percentile(times, q)) for q in PERCENTILES}
    span = max(r.tokens[-1] for r in done) - min(r.arrived for r in done)
    if span > 0:
        found["request_throughput"] = len(done) / span
        found["output_throughput"] = sum(len(r.tokens) for r in done) / span
    return found
