"""Three runs on a Ray that exports its metrics, scraped as Prometheus would. Prints JSON.

In a process of its own: a process can be in one Ray at a time. Usage: python -m tests.run.scenario_metrics
FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import torch
from prometheus_client.parser import text_string_to_metric_families

import jacjobs
from jacjobs.planning import geometry
from jacjobs.store.folder import RunFolder
from tests.faults.job import PART_BYTES, TroubledJob
from tests.ports import free_port

SECONDS = 120
BLOCKS = "ray_jacjobs_blocks_total"
IN_FLIGHT = "ray_jacjobs_blocks_in_flight"
QUARANTINED = "ray_jacjobs_blocks_quarantined_total"
HALVINGS = "ray_jacjobs_oom_halvings_total"

Families = dict[str, dict[str, Any]]


class Prometheus:
    """Reads what the node exports."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"

    def scrape(self, run: str) -> Families:
        """Of one run: by name, the kind, the help and the value; one of each."""
        with urllib.request.urlopen(self._url, timeout=10) as answer:
            text = answer.read().decode()
        found: Families = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if "jacjobs" in sample.name and sample.labels["run"] == run:
                    assert sample.name not in found, "two series"
                    found[sample.name] = {
                        "kind": family.type,
                        "help": family.documentation,
                        "value": sample.value,
                        "job": sample.labels["name"],
                    }
        return found

    def when(self, run: str, values: dict[str, float]) -> Families:
        """What is there once these values are, or at last."""
        give_up = time.monotonic() + SECONDS
        found: Families = {}
        while time.monotonic() < give_up:
            with suppress(OSError):  # not up yet
                found = self.scrape(run)
            if all(found.get(name, {}).get("value") == value for name, value in values.items()):
                break
            time.sleep(0.2)
        return found


def a_worker_dies(prometheus: Prometheus, folder: Path) -> dict[str, Any]:
    """Then the run is held in its ninth block, so that the queue can be seen; then it goes on."""
    job = TroubledJob(folder)
    job.trouble(5, "once die")
    job.trouble(8, "hold")
    run = job.submit("cluster.address=auto")
    digest = run_digest(job.out)
    job.wait_until_met(8)
    held = prometheus.when(digest, {BLOCKS: 8, IN_FLIGHT: 2})
    job.calm(8)
    memory = run.wait().memory
    attempt = job.last_attempt()
    return {
        "held": held,
        "ended": prometheus.when(digest, {BLOCKS: job.points, IN_FLIGHT: 0}),
        "blocks_repeated": attempt.blocks_repeated,
        "memory": memory,
        "bytes_on_disk": jacjobs.open(job.out).to_numpy().nbytes,
    }


def a_block_is_quarantined(prometheus: Prometheus, folder: Path) -> dict[str, Any]:
    job = TroubledJob(folder)
    job.trouble(11, "die")
    failure = job.failure("cluster.address=auto")
    digest = run_digest(job.out)
    (attempt,) = RunFolder(job.out).attempts(None)
    return {
        "code": failure.exit_code,
        "failures": attempt.failures_total,
        "ended": prometheus.when(digest, {QUARANTINED: 1, IN_FLIGHT: 0}),
    }


def memory_runs_out(prometheus: Prometheus, folder: Path) -> dict[str, Any]:
    """In a worker, wherever more than two samples come at once."""
    driver = os.getpid()

    def fn(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2 and os.getpid() != driver:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.sin() * x.sum(1, keepdim=True)

    problem = jacjobs.Problem(fn, (torch.randn(64, 4),), in_dims=0, batched=True)
    options = {"address": "auto", "workers": 1, "strategy": "vjp/repeat", "chunk": 8, "check": "off"}
    manifest = jacjobs.submit(problem, folder, **options).wait()
    ended = prometheus.when(manifest.run, {BLOCKS: 1, HALVINGS: 2, IN_FLIGHT: 0})
    return {"ended": ended, "retreats": manifest.memory["retreats"]}


def run_digest(run: Path) -> str:
    return RunFolder(run).record().run


def main() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    geometry.SMALLEST_PART_BYTES = PART_BYTES
    port = free_port()
    found = {}
    with tempfile.TemporaryDirectory(prefix="jj", dir="/tmp") as temporary:
        ray.init(
            address="local",
            num_cpus=1,
            object_store_memory=200 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=temporary,
            _metrics_export_port=port,
            _system_config={"metrics_report_interval_ms": 1000},
        )
        try:
            for scenario in (a_worker_dies, a_block_is_quarantined, memory_runs_out):
                folder = Path(sys.argv[1]) / scenario.__name__
                found[scenario.__name__] = scenario(Prometheus(port), folder)
        finally:
            ray.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
