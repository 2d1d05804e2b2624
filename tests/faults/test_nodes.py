"""Nodes that are lost and added in mid-run. What happens is in scenario_nodes.py, which runs once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock, patch

import pytest
from ray.exceptions import ActorDiedError, ObjectReconstructionFailedError, OutOfMemoryError, RayTaskError

from jacjobs.run.cluster.executor import Call, RayExecutor
from jacjobs.run.messages import AssemblerLost, BlockId, BlockLost
from tests.faults.job import ROOT

Record = Callable[..., None]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
POINTS = list(range(1, 12))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("nodes")
    command = [sys.executable, "-m", "tests.faults.scenario_nodes", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def check_complete(ended: dict[str, Any]) -> None:
    assert ended["same_bytes"]
    assert ended["computed"] == POINTS


GONE = ("its node is gone", "it cannot be reached")
"""What is said of whoever was on a lost node: which, depends on what Ray notices first."""


def lost_worker(ended: dict[str, Any]) -> str:
    """What the manifest says of the first."""
    first = next(one for one in ended["failures"] if one["who"].startswith("worker"))
    assert first["cause"] in GONE
    return f"{first['who']}: {', or '.join(GONE)}"


def test_a_raylet_is_killed(seen: dict[str, dict[str, Any]], row: Record) -> None:
    ended = seen["a_raylet_is_killed"]
    check_complete(ended)
    row(
        "A node's raylet is killed",
        caused_by="`SIGKILL` of the raylet of a node of a Ray cluster; what it started ends with it",
        happens="Its blocks are computed on the nodes that are left.",
        code=0,
        says=lost_worker(ended),
    )


def test_a_node_is_lost_and_another_one_added(seen: dict[str, dict[str, Any]], row: Record) -> None:
    """Nothing is done again but what was on its way there, or in parts that were open there."""
    ended = seen["a_node_is_lost_and_another_added"]
    check_complete(ended)
    assert 1 <= ended["calls_repeated"] <= ended["at_stake"]
    assert 1 <= ended["blocks_repeated"] <= ended["at_stake"]
    row(
        "A node of three is lost, and another one added",
        caused_by="all processes of a node killed, and a new node started",
        happens="The blocks on their way there, two at most, are computed again on the new node; if the "
        "assembler was there too, so is what that had taken in of open parts.",
        code=0,
        says=lost_worker(ended),
    )


def test_all_nodes_are_lost_and_one_added(seen: dict[str, dict[str, Any]], row: Record) -> None:
    ended = seen["all_nodes_are_lost_and_one_added"]
    check_complete(ended)
    row(
        "All nodes are lost but the driver's",
        caused_by="all processes of every node killed, and a new node started later",
        happens="The run waits (`paused`), and goes on when there is a node.",
        code=0,
        says=lost_worker(ended),
    )


def test_a_node_is_lost_with_blocks_that_nobody_fetched(seen: dict[str, dict[str, Any]], row: Record) -> None:
    ended = seen["a_node_is_lost_with_blocks_that_nobody_fetched"]
    check_complete(ended)
    (cause,) = {one["cause"] for one in ended["failures"] if one["who"].startswith("assembler")}
    assert cause == "its data was on a node that is gone", "it was not taken for dead itself"
    assert ended["calls_repeated"] == 2
    row(
        "A node is lost with blocks that no assembler has fetched",
        caused_by="an assembler that is suspended while workers on another node finish, and that node killed",
        happens="The blocks are computed again; the assembler and its open parts stay.",
        code=0,
        says=f"assembler-0: {cause}",
    )


LOST_DATA = RayTaskError(
    "absorb", "…", ObjectReconstructionFailedError("0f", owner_address=b"", call_site=""), "ray::x", 1, "::1"
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LOST_DATA, BlockLost),
        (LOST_DATA.as_instanceof_cause(), BlockLost),
        (OutOfMemoryError("killed due to the node running low on memory"), AssemblerLost),
        (ActorDiedError(), AssemblerLost),
        (RayTaskError("absorb", "…", MemoryError("no room"), "ray::x", 1, "::1"), AssemblerLost),
    ],
)
def test_what_ray_reports_of_an_assembler_is_put_down_to_whom_it_concerns(
    error: Exception, expected: type
) -> None:
    """An error of the data says nothing of the assembler; a death has more names than ActorDiedError."""
    executor = RayExecutor.__new__(RayExecutor)
    assembler, lost, kept = Mock(), Mock(**{"hex.return_value": "0f"}), Mock(**{"hex.return_value": "1f"})
    executor._actors, executor._calls, executor._gathered = {"assembler-0": assembler}, {}, {}
    blocks = tuple(("worker-1", BlockId(0, position)) for position in range(3))
    executor._data = dict(zip(blocks, [(lost, 0), (lost, 1), (kept, 0)], strict=True))
    with patch("ray.kill"):
        events = list(executor._failed(Call("absorb", "assembler-0", blocks), error))
    assert {type(event) for event in events} == {expected}
    if expected is BlockLost:
        assert [event.block.position for event in events] == [0, 1], "what was not lost is asked for again"
        assembler.absorb.remote.assert_called_once_with([(0, 2, 0, 0)], kept)
        assert set(executor._data) == {blocks[2]}
    else:
        assert len(events) == 1
