"""A cluster of several nodes on this machine, which are lost and added while a job runs. Prints JSON.

In a process of its own: a process can be in one Ray at a time. Usage: python -m tests.faults.scenario_nodes
FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from jacjobs import api
from jacjobs.planning import geometry
from jacjobs.run.roster import IN_FLIGHT
from tests.faults.job import PART_BYTES, TroubledJob, actors, parts, title, wait_for

STORE_BYTES = 100 << 20
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 4,
}
"""A node that is gone is noticed within seconds."""


class Nodes:
    """A head without workers, where the driver is, and nodes with one CPU each."""

    def __init__(self, temporary: str) -> None:
        head = {
            "num_cpus": 0,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
            "temp_dir": temporary,
            "_system_config": HEALTH,
        }
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    @property
    def all(self) -> list[Any]:
        return list(self._cluster.worker_nodes)

    def of(self, pid: int) -> Any:
        """The node with this process."""
        return next(node for node in self.all if has(node, pid))

    def remove(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_raylet(self, node: Any) -> None:
        raylet(node).kill()
        self._cluster.worker_nodes.remove(node)

    def wait_for_deaths(self, count: int) -> None:
        """Until Ray knows of so many."""
        wait_for(lambda: sum(not node["Alive"] for node in ray.nodes()) == count)

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def has(node: Any, pid: int) -> bool:
    return pid in [process.pid for process in raylet(node).children(recursive=True)]


# -- what happens ------------------------------------------------------------------------------------------


def a_raylet_is_killed(nodes: Nodes, job: TroubledJob) -> dict[str, Any]:
    nodes.add(2)
    run = started(job, workers=2, held=(2, 6))
    nodes.kill_raylet(nodes.of(job.wait_until_met(6)))
    calm(job, 2, 6)
    return ended(job, run)


def a_node_is_lost_and_another_added(nodes: Nodes, job: TroubledJob) -> dict[str, Any]:
    """The other workers are held until the new one has done what was lost."""
    nodes.add(2)
    run = started(job, workers=3, held=(2, 6, 10))
    lost = nodes.of(job.wait_until_met(6))
    at_stake = IN_FLIGHT + (6 if actors("AssemblerActor", raylet(lost)) else 0)
    nodes.remove(lost)
    job.calm(6)
    nodes.add()
    wait_for(lambda: job.calls()[7])
    calm(job, 2, 10)
    return {"at_stake": at_stake, **ended(job, run)}


def all_nodes_are_lost_and_one_added(nodes: Nodes, job: TroubledJob) -> dict[str, Any]:
    run = started(job, workers=1, held=(6,))
    for node in nodes.all:
        nodes.remove(node)
    job.calm(6)
    wait_for(lambda: (now := run.progress()) is not None and now.paused and not now.workers)
    nodes.add()
    return ended(job, run)


def a_node_is_lost_with_blocks_that_nobody_fetched(nodes: Nodes, job: TroubledJob) -> dict[str, Any]:
    """The assembler is frozen elsewhere, until the data that it is about to fetch is gone."""
    nodes.add()
    run = started(job, workers=2, held=(2, 6))
    (frozen,) = actors("AssemblerActor")
    frozen.suspend()
    calm(job, 2, 6)
    wait_for(lambda: job.calls()[3] and job.calls()[7])
    wait_for(lambda: all(title(worker) == "ray::WorkerActor" for worker in actors("WorkerActor")))
    lost = next(node for node in nodes.all if not has(node, frozen.pid))
    dead = sum(not node["Alive"] for node in ray.nodes())
    nodes.remove(lost)
    nodes.wait_for_deaths(dead + 1)
    frozen.resume()
    return ended(job, run)


def started(job: TroubledJob, workers: int, held: tuple[int, ...]) -> api.Run:
    """Each worker is held in its own part, and what came before has been taken in."""
    for point in held:
        job.trouble(point, "hold")
    run = job.submit(f"cluster.workers={workers}")
    for point in held:
        job.wait_until_met(point)
    before = sum(point % 4 if len(held) > 1 else point for point in held)
    wait_for(lambda: (now := run.progress()) is not None and now.blocks_done == before)
    return run


def calm(job: TroubledJob, *points: int) -> None:
    for point in points:
        job.calm(point)


def ended(job: TroubledJob, run: api.Run) -> dict[str, Any]:
    run.wait()
    attempt = job.last_attempt()
    return {
        "failures": [{"who": one.who, "cause": one.cause} for one in attempt.failures],
        "blocks_repeated": attempt.blocks_repeated,
        "calls_repeated": sum(times - 1 for times in job.calls().values()),
        "computed": sorted(job.calls()),
        "same_bytes": parts(job.out) == job.undisturbed(),
        "run": str(job.out),
    }


SCENARIOS: tuple[Callable[[Nodes, TroubledJob], dict[str, Any]], ...] = (
    a_raylet_is_killed,
    a_node_is_lost_and_another_added,
    all_nodes_are_lost_and_one_added,
    a_node_is_lost_with_blocks_that_nobody_fetched,
)


def main() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    geometry.SMALLEST_PART_BYTES = PART_BYTES
    found = {}
    with tempfile.TemporaryDirectory(prefix="jj", dir="/tmp") as temporary:
        nodes = Nodes(temporary)
        try:
            for scenario in SCENARIOS:
                found[scenario.__name__] = scenario(nodes, TroubledJob(Path(sys.argv[1]) / scenario.__name__))
        finally:
            nodes.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
