"""A run as Python programs hold it: scripts, Ray tasks, asyncio, notebooks, other processes."""

from __future__ import annotations

import asyncio
import json
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import psutil
import pytest
import ray
import torch
from torch import Tensor

import jacjobs
from jacjobs.errors import FunctionError, InputError, RunHeldError, StoppedError
from jacjobs.run.cluster import watched
from jacjobs.run.cluster.watched import AttachedRun
from jacjobs.run.lookout import Lookout
from tests.faults.job import ROOT, TroubledJob, wait_for

TICK_SECONDS = 0.01
WEIGHTS = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
POINTS = torch.linspace(0, 1, 21, dtype=torch.float64).reshape(7, 3)


def closure(scale: float) -> jacjobs.Problem:
    """A lambda, and what it closes over."""
    weights = WEIGHTS * scale
    return jacjobs.Problem(lambda x: torch.tanh(weights @ x), (POINTS,), in_dims=0)


def expected(scale: float) -> np.ndarray[Any, Any]:
    J: Tensor = torch.func.vmap(torch.func.jacrev(lambda x: torch.tanh(WEIGHTS * scale @ x)))(POINTS)
    return J.numpy()


def python(code: str, *arguments: str) -> str:
    """What a script prints that runs in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- where a run is submitted --------------------------------------------------------------------------------


@pytest.mark.ray
def test_from_a_script(tmp_path: Path) -> None:
    """It starts a Ray, iterates over what is done, and leaves no process behind."""
    printed = python(
        """
        import sys, json, numpy as np, psutil, ray
        from tests.run.test_handle import closure, expected
        import jacjobs
        problem = closure(2.0)
        run = jacjobs.submit(problem, sys.argv[1], workers=1)
        J = np.full((7, 4, 3), np.nan)
        for rectangle, values in run:
            J[rectangle.slices] = values
        assert np.allclose(J, expected(2.0), rtol=1e-12)
        assert run.done() and run.result().complete and not ray.is_initialized()
        print(json.dumps([child.name() for child in psutil.Process().children(recursive=True)]))
        """,
        str(tmp_path / "run"),
    )
    assert json.loads(printed.splitlines()[-1]) == []


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_from_a_ray_task(tmp_path: Path) -> None:
    """The session is the one that is there; it stays as it was, and the handle comes back from the task."""

    @ray.remote
    def sensitivities(path: str) -> jacjobs.Run:
        run = jacjobs.submit(closure(3.0), path, workers=1)
        run.wait()
        assert ray.is_initialized()
        return run

    before = {node["NodeID"] for node in ray.nodes()}
    named = actors()
    run = ray.get(sensitivities.remote(str(tmp_path / "run")), timeout=120)
    np.testing.assert_allclose(run.result().to_numpy(), expected(3.0), rtol=1e-12)
    assert {node["NodeID"] for node in ray.nodes()} == before
    wait_for(lambda: actors() <= named)


def actors() -> set[tuple[str, str]]:
    """That have a name: coordinators, and those of others."""
    return {(one["namespace"], one["name"]) for one in ray.util.list_named_actors(all_namespaces=True)}


@pytest.mark.parametrize("address", ["inline", pytest.param("local", marks=pytest.mark.ray)])
def test_from_asyncio(address: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Two runs at once, beside another task that goes on meanwhile; blocks come as they are committed."""

    if address == "local":
        request.getfixturevalue("cluster")

    async def program() -> tuple[list[np.ndarray[Any, Any]], float]:
        ticks = 0

        async def beside() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(TICK_SECONDS)
                ticks += 1

        other = asyncio.create_task(beside())
        runs = [
            jacjobs.submit(closure(scale), tmp_path / str(scale), address=address, workers=1)
            for scale in (1.0, 2.0)
        ]
        ticks, began = 0, time.monotonic()
        first, second = await asyncio.gather(*runs)
        seen = [rectangle.entries async for rectangle, _ in runs[0]]
        assert sum(seen) == 7 * 4 * 3
        other.cancel()
        share = ticks * TICK_SECONDS / (time.monotonic() - began)
        return [first.to_numpy(), second.to_numpy()], share

    found, share = asyncio.run(program())
    for scale, J in zip((1.0, 2.0), found, strict=True):
        np.testing.assert_allclose(J, expected(scale), rtol=1e-12)
    assert share > (0.2 if address == "local" else 0), "the loop was not held up"


@pytest.mark.ray
def test_from_a_notebook(tmp_path: Path) -> None:
    """As nbconvert executes it: a function of a cell, a bar while it is waited for, the dataset after it."""
    cells = [
        "import torch, jacjobs\nW = torch.linspace(-1, 1, 12).reshape(4, 3)",
        "def fn(x):\n    return torch.tanh(W @ x)",
        "problem = jacjobs.Problem(fn, (torch.ones(500, 3),), in_dims=0)",
        f"run = jacjobs.submit(problem, {str(tmp_path / 'run')!r}, workers=1)\nrun",
        "J = run.result()",
        "J.shape",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    file = tmp_path / "example.ipynb"
    nbformat.write(notebook, file)
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    executed = nbformat.read(file, as_version=4).cells
    assert "jacjobs.Run of J 500 × 4 × 3" in value(executed[3])
    bar = "".join(output.get("text", "") for output in executed[4].outputs)
    assert "2000/2000" in bar
    assert "100%" in bar
    assert value(executed[5]) == "(500, 4, 3)"


def value(cell: Any) -> str:
    """What the last line of a cell gave."""
    (result,) = [output for output in cell.outputs if output.output_type == "execute_result"]
    return str(result.data["text/plain"])


# -- what a run gives ----------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_blocks_come_as_they_are_committed(job: TroubledJob) -> None:
    """Those of the first part while the second is held; each entry once."""
    job.trouble(6, "hold")
    run = job.submit()
    blocks = iter(run)
    J = np.full((12, 16, 8192), np.nan)
    first = next(blocks)
    assert first.rectangle.point_start == 0
    assert not run.done()
    assert (now := run.progress()) is not None
    assert now.blocks_done < 12
    job.calm(6)
    for rectangle, values in (first, *blocks):
        assert np.isnan(J[rectangle.slices]).all(), "not seen before"
        J[rectangle.slices] = values
    assert run.done()
    np.testing.assert_array_equal(J, run.result().to_numpy())


def test_an_error_comes_after_what_was_committed(job: TroubledJob) -> None:
    job.trouble(9, "fail")
    run = job.submit("cluster.address=inline")
    blocks = iter(run)
    assert sum(next(blocks).rectangle.points for _ in range(2)) == 8, "two parts of four points"
    with pytest.raises(FunctionError, match="no result at point 9"):
        next(blocks)
    with pytest.raises(FunctionError, match="no result at point 9"):
        run.wait()


def test_who_is_interrupted_while_waiting_may_wait_again(job: TroubledJob) -> None:
    """As by the button of a notebook, once the run goes on in the background."""
    job.trouble(5, "hold")
    run = job.submit("cluster.address=inline")
    blocks = iter(run)
    next(blocks)
    threading.Timer(0.5, lambda: psutil.Process().send_signal(signal.SIGINT)).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not run.done()
    job.calm(5)
    assert run.result().complete


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_the_same_run_twice_in_one_ray(job: TroubledJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it goes on it is refused; when it has ended it is begun again, though nobody waited for it."""
    monkeypatch.setattr(watched, "PATIENCE_SECONDS", 0.5)
    job.trouble(6, "hold")
    first = job.submit()
    job.wait_until_met(6)
    with pytest.raises(RunHeldError, match=r"got a run in progress, in this Ray.*`jacjobs\.attach` finds it"):
        job.submit()
    job.calm(6)
    wait_for(first.done)
    second = job.submit()
    assert second.result().complete
    assert sum(values.size for _, values in second) == 12 * 16 * 8192


def test_who_looks_on_gets_the_same_error(job: TroubledJob) -> None:
    job.trouble(9, "fail")
    run = job.submit("cluster.address=inline")
    with pytest.raises(FunctionError, match="no result at point 9"):
        run.wait()
    with pytest.raises(FunctionError, match="no result at point 9"):
        jacjobs.attach(job.out).wait()


# -- other processes -----------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_handle_goes_to_a_process_of_the_same_ray(job: TroubledJob) -> None:
    """A task gets it pickled, or finds the run by name, and asks the coordinator."""
    job.trouble(6, "hold")
    run = job.submit()
    job.wait_until_met(6)

    @ray.remote(num_cpus=0)
    def look(handle: jacjobs.Run) -> tuple[bool, bool, int, str]:
        named = jacjobs.attach("troubled")
        now = named.progress()
        assert now is not None
        named.stop()
        try:
            handle.wait()
        except StoppedError as error:
            return (
                isinstance(handle._running, AttachedRun),
                isinstance(named._running, AttachedRun),
                now.blocks_done,
                str(error),
            )
        raise AssertionError("it was not stopped")

    wait_for(lambda: (now := run.progress()) is not None and now.blocks_done >= 4)
    answer = look.remote(run)
    wait_for(lambda: (now := run.progress()) is not None and now.state == "stopping")
    job.calm(6)
    with pytest.raises(StoppedError):
        run.wait()
    direct, by_name, done, said = ray.get(answer, timeout=60)
    assert direct
    assert by_name
    assert done >= 4
    assert said.startswith("stopped on request")


def test_a_handle_goes_to_a_process_without_ray(job: TroubledJob) -> None:
    """There the folder says what is known; a stop is asked for there too."""
    job.trouble(6, "hold")
    run = job.submit("cluster.address=inline")
    blocks = iter(run)
    next(blocks)
    handle = pickle.dumps(run)
    other = jacjobs.attach(job.out)
    assert isinstance(other._running, Lookout) or ray.is_initialized()
    printed = python(
        """
        import sys, json, jacjobs, pickle
        run = pickle.loads(bytes.fromhex(sys.argv[1]))
        print(json.dumps([type(run._running).__name__, run.done(), run.path, run.progress().blocks_total]))
        run.stop()
        """,
        handle.hex(),
    )
    assert json.loads(printed) == ["Lookout", False, str(job.out), 12]
    job.calm(6)
    with pytest.raises(StoppedError, match="stopped on request"):
        run.wait()
    with pytest.raises(StoppedError, match="stopped on request"):
        other.wait()


def test_attached_to_what_has_ended_and_to_nothing(job: TroubledJob, tmp_path: Path) -> None:
    job.submit("cluster.address=inline").wait()
    run = jacjobs.attach(job.out)
    assert run.done()
    assert run.result().complete
    assert sum(values.size for _, values in run) == 12 * 16 * 8192
    with pytest.raises(InputError):
        jacjobs.attach(tmp_path / "none")
