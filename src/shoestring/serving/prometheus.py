"""Metrics of a live engine in Prometheus' text form, under vLLM's names."""

from typing import Any

from shoestring.errors import MissingExtra
from shoestring.serving.engine import Engine
from shoestring.serving.metrics import RequestTimes

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)


class ServingMetrics:
    """Gauges, counters and histograms of one engine. Raises: MissingExtra without prometheus-client."""

    def __init__(self, engine: Engine, model: str) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise MissingExtra("metrics need prometheus-client; pip install 'shoestring[serve]'") from error
        self.engine, self.content_type = engine, prometheus.CONTENT_TYPE_LATEST
        self._registry = prometheus.CollectorRegistry()
        self._write = prometheus.generate_latest

        def made(kind: Any, name: str, text: str, **options: Any) -> Any:
            labels = ["model_name", *options.pop("labels", [])]
            metric = kind(f"vllm:{name}", text, labels, registry=self._registry, **options)
            return metric.labels(model) if len(labels) == 1 else metric

        self.running = made(prometheus.Gauge, "num_requests_running", "Requests with blocks.")
        self.waiting = made(prometheus.Gauge, "num_requests_waiting", "Requests without blocks.")
        self.usage = made(prometheus.Gauge, "kv_cache_usage_perc", "Share of blocks in use; 1 is all.")
        self.preemptions = made(prometheus.Counter, "num_preemptions", "Requests that lost their blocks.")
        self.prompt_tokens = made(
            prometheus.Counter, "prompt_tokens", "Tokens of prompts of requests that ended."
        )
        self.new_tokens = made(prometheus.Counter, "generation_tokens", "New tokens of requests that ended.")
        self._success = made(
            prometheus.Counter, "request_success", "Requests that ended.", labels=["finished_reason"]
        )
        self._model = model
        self.ttft, self.itl, self.e2el = (
            made(prometheus.Histogram, name, text, buckets=SECONDS)
            for name, text in (
                ("time_to_first_token_seconds", "First token − arrival."),
                ("inter_token_latency_seconds", "Gaps between two tokens of a request."),
                ("e2e_request_latency_seconds", "Last token − arrival."),
            )
        )
        self._preempted = 0

    def finished(self, times: RequestTimes, prompt_tokens: int, reason: str) -> None:
        """Count a request that ended."""
        self.prompt_tokens.inc(prompt_tokens)
        self.new_tokens.inc(len(times.tokens))
        self._success.labels(self._model, reason).inc()
        if times.tokens:
            self.ttft.observe(times.ttft)
            self.e2el.observe(times.tokens[-1] - times.arrived)
        for gap in times.gaps:
            self.itl.observe(gap)

    def sample(self) -> None:
        """Note how the engine stands; to be called where it runs, between iterations."""
        pool = self.engine.scheduler.pool
        self.running.set(len(pool.running))
        self.waiting.set(len(pool.waiting))
        self.usage.set(pool.manager.used / pool.manager.n_blocks)
        self.preemptions.inc(self.engine.preemptions - self._preempted)
        self._preempted = self.engine.preemptions

    def text(self) -> bytes:
        """All metrics, as last sampled and counted."""
        return self._write(self._registry)
