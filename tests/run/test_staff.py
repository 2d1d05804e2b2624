"""Workers that are engaged before the plan: the one that timed chunks computes, and none is left over."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

import jacjobs
from jacjobs import Problem, api
from jacjobs.errors import FunctionError
from jacjobs.job import Job, job_from_options
from jacjobs.planning.planner import chooser_for
from jacjobs.run.cluster.actors import Payload
from jacjobs.run.cluster.session import Placement
from jacjobs.run.cluster.staff import Staff, staff
from jacjobs.run.cluster.watched import RayRun
from jacjobs.store.folder import RunFolder
from tests.faults.job import actors, wait_for
from tests.functions import randn

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def noted(folder: Path) -> Problem:
    """Which process calls it leaves a file."""

    def fn(x: Tensor) -> Tensor:
        (folder / str(os.getpid())).touch()
        return torch.sin(x) * x.sum()

    return Problem(fn, (randn(40, 8),), in_dims=0)


def drafted(problem: Problem, path: Path, **options: object) -> tuple[Job, api._Draft]:
    job = job_from_options(problem, str(path), options)
    return job, api._draft(job)


def test_who_timed_chunks_computes(tmp_path: Path) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    job, draft = drafted(noted(folder), tmp_path / "run", workers=1)
    placement = Placement(1, 1, 0)
    payload = Payload.pack(job.problem)
    with staff(payload, job.cluster, placement) as engaged:
        engaged.engage(5)
        assert len(engaged.workers) == 1, "as many as the run may have"
        chooser = chooser_for(draft.facts, job.compute, job.output, draft.resources)
        timings = engaged.tune(b"", chooser, 1.0)
        record = api._created(job, RunFolder(tmp_path / "run"), draft, lambda *_: timings)
        run = RayRun(record, str(tmp_path / "run"), payload, placement, engaged.workers)
    assert timings
    timed_by = {file.name for file in folder.iterdir()} - {str(os.getpid())}
    run.result()
    assert {file.name for file in folder.iterdir()} - {str(os.getpid())} == timed_by
    assert len(timed_by) == 1
    wait_for(lambda: not actors("WorkerActor"))


def test_a_worker_does_not_look_at_the_problem_again(tmp_path: Path) -> None:
    """It calls the function once, for the only chunk of the only block."""
    calls = tmp_path / "calls"
    calls.touch()

    def fn(x: Tensor) -> Tensor:
        if os.getpid() != here:
            with calls.open("a") as file:
                file.write("a")
        return x.sin()

    here = os.getpid()
    options = {"strategy": "vjp/vmap", "chunk": 6, "check": "off", "workers": 1}
    jacjobs.submit(Problem(fn, (randn(6),)), tmp_path / "run", **options).result()
    assert calls.read_text() == "a"


def test_a_plan_without_work_for_all_sends_the_others_home(tmp_path: Path) -> None:
    """Three workers are engaged before it is known that there is one block; the room of two is free again."""
    begun = tmp_path / "begun"
    go_on = tmp_path / "go on"

    def fn(x: Tensor) -> Tensor:
        if os.getpid() != here:
            begun.touch()
            wait_for(go_on.exists)
        return x.sin()

    here = os.getpid()
    run = jacjobs.submit(Problem(fn, (randn(6),)), tmp_path / "run", workers=3, check="off")
    wait_for(begun.exists)
    wait_for(lambda: len(actors("WorkerActor")) == 1)
    go_on.touch()
    run.wait()
    wait_for(lambda: not actors("WorkerActor"))


def test_nobody_stays_where_the_function_fails(tmp_path: Path) -> None:
    def fn(x: Tensor) -> Tensor:
        raise ValueError("not today")

    with pytest.raises(FunctionError, match="not today"):
        jacjobs.submit(Problem(fn, (randn(6),)), tmp_path / "run", workers=2)
    wait_for(lambda: not actors("WorkerActor"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_ended_keeps_no_handle_of_an_actor(tmp_path: Path) -> None:
    """Where Ray is started again in this process, actors have the same numbers, and a handle of an old one
    that is let go of ends a new one.
    """
    run = jacjobs.submit(Problem(torch.sin, (randn(6),)), tmp_path / "run", workers=1)
    run.result()
    gc.collect()
    assert not [x for x in gc.get_objects() if type(x) is ActorHandle]
    assert run.done()
    assert run.progress() is None
    run.stop()


def test_one_that_dies_while_it_times_chunks_is_not_handed_on(tmp_path: Path) -> None:
    def fn(x: Tensor) -> Tensor:
        if os.getpid() != here:
            os._exit(1)
        return x.sin()

    here = os.getpid()
    job, draft = drafted(Problem(fn, (randn(6),)), tmp_path / "run", workers=2)
    engaged = Staff(Payload.pack(job.problem), job.cluster, Placement(2, 1, 0))
    engaged.engage(2)
    first, second = engaged.workers
    chooser = chooser_for(draft.facts, job.compute, job.output, draft.resources)
    assert engaged.tune(b"", chooser, 1.0) == []
    assert engaged.workers == [second]
    assert ray.get(second.ping.remote(), timeout=60) is None
    engaged.dismiss()
    assert first not in engaged.workers
    wait_for(lambda: not actors("WorkerActor"))


def test_what_timings_leave_behind_is_given_back() -> None:
    from jacjobs.run import tuner

    # 160 MB, in pieces too small to go back each by itself; the last one keeps the heap from shrinking
    many = [torch.ones(25_000) for _ in range(1600)]
    full = psutil.Process().memory_info().rss
    del many[:-1]
    tuner._tidy()
    assert psutil.Process().memory_info().rss < full - (100 << 20)
