"""A cluster whose autoscaler starts nodes when a job asks for them: Ray's own, with processes here for nodes.
Prints JSON.

In a process of its own: a process can be in one Ray at a time. Usage:
python -m tests.run.scenario_autoscaling FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

from jacjobs.planning import geometry
from tests.faults.job import PART_BYTES, TroubledJob, parts, read_until
from tests.ports import free_port

STORE_BYTES = 100 << 20
HEAD = "f" * 51 + "00000"
"""What Ray's provider of nodes for tests calls the head."""
EMPTY = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")


def launcher_file(address: str) -> dict[str, Any]:
    """As cluster.yaml: a head that computes nothing, and nodes from 0 to 2."""
    return {
        "cluster_name": "growing",
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": HEAD,
            "gcs_address": address,
        },
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "max_workers": 2,
        "upscaling_speed": 8.0,
        "idle_timeout_minutes": 10,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "node": {
                "resources": {"CPU": 1, "object_store_memory": STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        **{f"{commands}_commands": [] for commands in EMPTY},
    }


def started(folder: Path, port: int, temporary: str) -> psutil.Popen:
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(launcher_file(f"{ray.util.get_node_ip_address()}:{port}")))
    command = [
        str(Path(sys.executable).parent / "ray"),
        *("start", "--head", "--block", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"),
        *(f"--object-store-memory={STORE_BYTES}", f"--temp-dir={temporary}", f"--autoscaling-config={file}"),
    ]
    environment = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",  # as `ray up` does
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    head = psutil.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    read_until(head, "will now block")
    return head


def end(head: psutil.Popen) -> None:
    for process in [*head.children(recursive=True), head]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.communicate()


def cpus() -> float:
    """Of the nodes that are there."""
    return float(ray.cluster_resources().get("CPU", 0))


def what_happens(job: TroubledJob) -> dict[str, Any]:
    """Two workers are held at a time, which no node could be alone."""
    before = cpus()
    refused = job.failure("cluster.address=auto", "cluster.workers=auto")
    written = job.out.exists()
    for point in (2, 6):
        job.trouble(point, "hold")
    run = job.submit("cluster.address=auto", "cluster.workers=auto", "cluster.gpus_per_worker=0")
    for point in (2, 6):
        job.wait_until_met(point)
    during = cpus()
    for point in (2, 6):
        job.calm(point)
    run.wait()
    return {
        "refused": str(refused),
        "written": written,
        "cpus": [before, during],
        "failures": job.last_attempt().failures_total,
        "same_bytes": parts(job.out) == job.undisturbed(),
    }


def main() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    geometry.SMALLEST_PART_BYTES = PART_BYTES
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="jj", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        head = started(Path(sys.argv[1]), port, temporary)
        try:
            ray.init(address=f"127.0.0.1:{port}", log_to_driver=False, logging_level="ERROR")
            found = what_happens(TroubledJob(Path(sys.argv[1]) / "job"))
        finally:
            ray.shutdown()
            end(head)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
