"""A run's readings as metrics of its Ray cluster, which every node exports to Prometheus.

The table is all there is: metrics are made from it, the page docs/metrics.md is, and the dashboard is
compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jacjobs.run.readings import Readings

LABELS = ("run", "name")
"""The run's digest, and the name of its job."""


@dataclass(frozen=True)
class Metric:
    """reading: the field of `Readings` that it shows."""

    reading: str
    kind: Literal["counter", "gauge"]
    help: str

    @property
    def name(self) -> str:
        return f"jacjobs_{self.reading}"

    @property
    def exported(self) -> str:
        """As Prometheus sees it."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


METRICS = (
    Metric("rows", "counter", "Rows of J that were taken in: entries, divided by those of a row."),
    Metric("bytes", "counter", "Bytes of J that were taken in, before compression."),
    Metric("blocks", "counter", "Blocks that were taken in."),
    Metric("blocks_repeated", "counter", "Blocks that were handed out once more, each time counted."),
    Metric("blocks_quarantined", "counter", "Blocks that were given up: each took three workers with it."),
    Metric("workers_lost", "counter", "Workers that died, hung, or went with their node."),
    Metric(
        "oom_halvings",
        "counter",
        "Times that memory ran out, and a worker went on with half the chunk or a leaner strategy.",
    ),
    Metric("workers", "gauge", "Workers that live."),
    Metric("blocks_waiting", "gauge", "Blocks to be handed out: the queue."),
    Metric("blocks_in_flight", "gauge", "Blocks handed out and not taken in yet."),
    Metric(
        "device_memory_peak_bytes",
        "gauge",
        "The most that a block took of its worker's memory, so far; measured now and then.",
    ),
    Metric("device_memory_predicted_bytes", "gauge", "What the plan says that a block takes."),
    Metric("device_memory_budget_bytes", "gauge", "What a block may take of its worker's memory."),
)


class RunMetrics:
    """Call it with readings. Needs a process that is in a Ray.

    A counter never falls: what has to be made again counts once, and shows in `blocks_repeated`.
    """

    def __init__(self, run: str, name: str) -> None:
        self._labels = dict(zip(LABELS, (run, name), strict=True))
        self._made: dict[str, Any] = {}
        self._counted: dict[str, int] = {}

    def __call__(self, readings: Readings) -> None:
        for metric in METRICS:
            value = getattr(readings, metric.reading)
            if metric.kind == "gauge":
                self._get(metric).set(value)
                continue
            before = self._counted.get(metric.name, 0)
            if value > before:
                self._counted[metric.name] = value
                self._get(metric).inc(value - before)

    def _get(self, metric: Metric) -> Any:
        if metric.name not in self._made:
            from ray.util import metrics

            kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
            made = kind(metric.name, description=metric.help, tag_keys=LABELS)
            made.set_default_tags(self._labels)
            self._made[metric.name] = made
        return self._made[metric.name]
