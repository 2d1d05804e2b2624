"""Where workers go: one a GPU or a part of one, spread over the nodes, and onto nodes that are added."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any
from unittest.mock import patch

import pytest
import torch

import jacjobs
from jacjobs.run.cluster import session
from tests.faults.job import ROOT


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.run.scenario_gpus", str(tmp_path_factory.mktemp("gpus"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.ray
def test_each_gpu_has_one_worker_and_a_node_that_is_added_gets_its_own(seen: dict[str, Any]) -> None:
    found = seen["one_worker_a_gpu_and_a_node_that_is_added_is_used"]
    assert found["workers"] == [3, 4]
    assert [device for _, device in found["placed"]] == ["GPU 0"] * 4
    nodes = [node for node, _ in found["placed"]]
    with_gpu = {node for node, gpus in seen["gpus"].items() if gpus}
    assert len(with_gpu) == 3
    assert set(nodes[:3]) == with_gpu, "spread, and none where there is no GPU"
    assert nodes[3] not in seen["gpus"], "the one that was added"
    assert found["same_bytes"]


@pytest.mark.ray
def test_a_part_of_a_gpu_is_shared_and_its_memory_too(seen: dict[str, Any]) -> None:
    found = seen["two_workers_a_gpu"]
    nodes = [node for node, _ in found["placed"]]
    assert sorted(nodes.count(node) for node, gpus in seen["gpus"].items() if gpus) == [2, 2, 2]
    assert len(nodes) == 6
    assert found["sharing"] == 2


@pytest.mark.ray
def test_more_workers_than_fit_are_refused(seen: dict[str, Any]) -> None:
    assert seen["more_than_there_are"]["says"].startswith(
        "cluster.workers: got 4 (with 1 CPUs and 1 GPUs each), expected at most 3: the cluster has 8 CPUs"
    )


@pytest.mark.parametrize(("gpus", "sharing"), [(0, 1), (0.25, 4), (0.6, 1), (1, 1), (2, 1), ("auto", 1)])
def test_workers_share_the_memory_of_a_gpu_that_is_only_named(gpus: float | str, sharing: int) -> None:
    problem = jacjobs.Problem(torch.sin, (torch.ones(4, 3),), in_dims=0)
    made = jacjobs.plan(problem, device="H100 80GB", gpus_per_worker=gpus)
    assert made.resources.sharing == sharing


NODES = [
    {"Alive": True, "Resources": {"CPU": 0.0}},
    {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
    {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 4.0}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    {"Alive": True, "Resources": {"CPU": 7.0}},
]


@pytest.mark.parametrize(
    ("cpus", "gpus", "limits", "workers"),
    [
        (1, 1, {}, 5),  # 2 by GPUs, 3 by CPUs
        (4, 1, {}, 2),  # no worker spans two nodes: 18 CPUs are not four workers
        (1, 0.25, {}, 11),
        (1, 0.6, {}, 5),  # one on each of 2, and on each of 3 of 4
        (2, 0, {}, 8),
        (1, 1, {"CPU": 64.0, "GPU": 16.0}, 16),  # what a cluster may grow to
        (1, 1, {"CPU": 64.0}, 5),
        (1, 2, {}, 3),
    ],
)
def test_room_is_counted_node_by_node(cpus: int, gpus: float, limits: dict[str, float], workers: int) -> None:
    with (
        patch.object(session.ray, "nodes", lambda: NODES),
        patch.object(session, "_limits", lambda: limits),
        patch.object(session, "_grows", lambda: False),
    ):
        assert session.room(cpus, gpus) == workers


@pytest.mark.parametrize(("workers", "assemblers"), [(1, 1), (8, 1), (9, 2), (64, 8), (4096, 512)])
def test_assemblers_are_as_many_as_can_write_what_the_workers_compute(workers: int, assemblers: int) -> None:
    assert session.Placement(workers, 1, 1).assemblers == assemblers
