"""On a cluster that starts nodes when they are asked for. What happens is in scenario_autoscaling.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.job import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("growing")
    command = [sys.executable, "-m", "tests.run.scenario_autoscaling", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_workers_that_wait_bring_nodes_and_these_more_workers(seen: dict[str, Any]) -> None:
    assert seen["cpus"] == [0, 2]
    assert seen["failures"] == 0
    assert seen["same_bytes"]


def test_a_cluster_without_nodes_does_not_say_whether_it_has_gpus(seen: dict[str, Any]) -> None:
    assert seen["refused"].startswith("cluster.gpus_per_worker: got auto, expected a number")
    assert "--set cluster.gpus_per_worker=1" in seen["refused"]
    assert not seen["written"]
