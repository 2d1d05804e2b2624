"""A cluster of nodes with GPUs, and one without, on this machine. Prints what its runs did, as JSON.

The GPUs are Ray's word for it only: torch has none here, so the plan says that the host computes. In a
process of its own: a process can be in one Ray at a time. Usage: python -m tests.run.scenario_gpus FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from jacjobs import api
from jacjobs.planning import geometry
from jacjobs.store.attempt import Attempt
from tests.faults.job import PART_BYTES, TroubledJob, parts, wait_for

STORE_BYTES = 100 << 20


def one_worker_a_gpu_and_a_node_that_is_added_is_used(cluster: Any, folder: Path) -> dict[str, Any]:
    job = TroubledJob(folder, points=16)
    for point in (2, 6, 10):
        job.trouble(point, "hold")
    run = submit(job)
    for point in (2, 6, 10):
        job.wait_until_met(point)
    before = run.progress()
    assert before is not None
    added = cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=STORE_BYTES)
    job.trouble(14, "hold")
    job.wait_until_met(14)
    now = run.progress()
    assert now is not None
    for point in (2, 6, 10, 14):
        job.calm(point)
    run.wait()
    cluster.remove_node(added)
    return {
        "workers": [before.workers, now.workers],
        "placed": placed(job.last_attempt()),
        "same_bytes": parts(job.out) == job.undisturbed(),
    }


def two_workers_a_gpu(cluster: Any, folder: Path) -> dict[str, Any]:
    job = TroubledJob(folder, points=24)
    for point in range(2, 24, 4):
        job.trouble(point, "hold")
    run = submit(job, "cluster.gpus_per_worker=0.5")
    for point in range(2, 24, 4):
        job.wait_until_met(point)
    for point in range(2, 24, 4):
        job.calm(point)
    run.wait()
    return {"placed": placed(job.last_attempt()), "sharing": run.plan.resources.sharing}


def more_than_there_are(cluster: Any, folder: Path) -> dict[str, Any]:
    job = TroubledJob(folder)
    return {
        "says": str(job.failure("cluster.address=auto", "cluster.workers=4", "cluster.gpus_per_worker=1"))
    }


def submit(job: TroubledJob, *settings: str) -> api.Run:
    return job.submit("cluster.address=auto", "cluster.workers=auto", *settings)


def placed(attempt: Attempt) -> list[tuple[str, str]]:
    """Each worker's node and devices."""
    return [(worker.where.rpartition(" ")[2], worker.device) for worker in attempt.workers]


def main() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    geometry.SMALLEST_PART_BYTES = PART_BYTES
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="jj", dir="/tmp") as temporary:
        head = {
            "num_cpus": 0,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
            "temp_dir": temporary,
        }
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for gpus in (1, 1, 1, 0):
                cluster.add_node(num_cpus=2, num_gpus=gpus, object_store_memory=STORE_BYTES)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            wait_for(lambda: ray.cluster_resources().get("CPU") == 8)
            found["gpus"] = {
                node["NodeID"][:8]: node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]
            }
            for scenario in (
                one_worker_a_gpu_and_a_node_that_is_added_is_used,
                two_workers_a_gpu,
                more_than_there_are,
            ):
                found[scenario.__name__] = scenario(cluster, Path(sys.argv[1]) / scenario.__name__)
        finally:
            ray.shutdown()
            cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
