"""Processes that die, hang, raise or run out of memory; signals; two writers of one run."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch

import jacjobs
from jacjobs.cli.app import main
from jacjobs.errors import IncompleteError, InputError, NonFiniteError, StoppedError, StoreError, WorkersError
from jacjobs.job import job_from_spec
from jacjobs.record import new_record
from jacjobs.run.cluster import session
from jacjobs.run.cluster.actors import Payload
from jacjobs.run.cluster.executor import RayExecutor
from jacjobs.run.cluster.session import Placement
from jacjobs.run.coordinator import Coordinator, part_metadata
from jacjobs.run.ledger import Ledger
from jacjobs.store import lock
from jacjobs.store.folder import RunFolder
from jacjobs.store.lock import RunLock
from jacjobs.store.place import LocalFolder
from tests.faults.job import TroubledJob, actors, ending, parts, read_until, wait_for

Record = Callable[..., None]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
in_this_session = pytest.mark.usefixtures("cluster")
GIB = 1 << 30


# -- processes of the run that die -------------------------------------------------------------------------


@in_this_session
def test_a_worker_is_killed(job: TroubledJob, row: Record) -> None:
    job.trouble(5, "hold")
    run = job.submit()
    os.kill(job.wait_until_met(5), signal.SIGKILL)
    job.calm(5)
    run.wait()
    (failure,) = job.last_attempt().failures
    assert any("points 5:6" in block for block in failure.blocks)
    assert parts(job.out) == job.undisturbed()
    row(
        "A worker is killed",
        caused_by="`SIGKILL`, while it computes a block",
        happens="A new worker computes its blocks.",
        code=0,
        says=f"{failure.who}: {failure.cause}",
    )


@in_this_session
def test_without_asking_for_a_block_again_the_run_of_a_killed_worker_never_ends(
    job: TroubledJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive way, which the test above would catch."""
    job.trouble(11, "once die")
    coordinator = coordinator_in_this_process(job)
    monkeypatch.setattr(Ledger, "_take_back", lambda self, name, block: False)

    def run() -> None:
        with suppress(StoppedError):
            coordinator.run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        # One that dies may take along the answer to the block before.
        wait_for(lambda: (now := coordinator.progress()).failures and now.workers and now.blocks_done >= 10)
        thread.join(timeout=2)
        assert thread.is_alive()
        assert coordinator.progress().blocks_done < 12
    finally:
        coordinator.stop()
        thread.join(timeout=60)
    assert job.who_met(11)
    assert len(parts(job.out)) == 2


def coordinator_in_this_process(job: TroubledJob) -> Coordinator:
    """Over Ray, but for the coordinator: what a test changes in here counts."""
    made = job_from_spec(jacjobs.jobspec.read_job(job.file, []), job.folder)
    plan = jacjobs.api.plan_job(made)
    record = new_record(made, plan, {})
    RunFolder(job.out).create(record)
    payload = Payload.pack(made.problem, made.modules)
    return Coordinator(
        record,
        str(job.out),
        lambda: RayExecutor(payload, plan, str(job.out), part_metadata(record), Placement(1, 1, 0)),
        workers=1,
    )


@in_this_session
def test_an_assembler_is_killed(job: TroubledJob, row: Record) -> None:
    job.trouble(6, "hold")
    run = job.submit()
    job.wait_until_met(6)
    wait_for(lambda: (now := run.progress()) is not None and now.blocks_done == 6)
    (assembler,) = actors("AssemblerActor")
    assembler.kill()
    job.calm(6)
    run.wait()
    attempt = job.last_attempt()
    (failure,) = attempt.failures
    assert failure.who.startswith("assembler-")
    assert attempt.blocks_repeated == 2, "of the open part, what it had taken in"
    assert {point for point, times in job.calls().items() if times > 1} == {4, 5}
    assert parts(job.out) == job.undisturbed()
    row(
        "An assembler is killed",
        caused_by="`SIGKILL`, with a part half written",
        happens="A new one takes its place; what the old one had taken in of open parts is computed again.",
        code=0,
        says=f"{failure.who}: {failure.cause}",
    )


@in_this_session
def test_the_coordinator_is_killed(job: TroubledJob, row: Record) -> None:
    job.trouble(6, "hold")
    run = job.submit()
    job.wait_until_met(6)
    (coordinator,) = actors("CoordinatorActor")
    coordinator.kill()
    with pytest.raises(WorkersError) as caught:
        run.wait()
    job.calm(6)
    wait_for(lambda: not actors("WorkerActor") and not actors("AssemblerActor"))
    assert len(parts(job.out)) == 1
    job.check_resumed()
    row(
        "The coordinator is killed",
        caused_by="`SIGKILL` of its process, while the command that watches it lives",
        happens="The command ends; committed parts stay.",
        code=caught.value.exit_code,
        says=str(caught.value),
    )


def test_the_driver_is_killed(job: TroubledJob, row: Record) -> None:
    job.trouble(6, "hold")
    process = job.start(job.command("submit", str(job.file)))
    job.wait_until_met(6)
    process.kill()
    ended = ending(process)
    job.calm(6)
    job.check_resumed()
    wait_for(lambda: not job.relatives())
    assert ended.code == -signal.SIGKILL
    row(
        "The command itself is killed",
        caused_by="`SIGKILL` of the process of `jacjobs submit`",
        happens="All processes of the run end within seconds; committed parts stay.",
        code=128 + signal.SIGKILL,
        says="(nothing)",
    )


def test_the_embedded_ray_breaks(job: TroubledJob, row: Record) -> None:
    job.trouble(6, "hold")
    process = job.start(job.command("submit", str(job.file)))
    job.wait_until_met(6)
    (raylet,) = (child for child in process.children() if child.name() == "raylet")
    raylet.kill()
    killed = time.monotonic()
    ended = ending(process)
    assert time.monotonic() - killed < 60
    assert ended.code == 1, ended
    assert "Traceback" not in ended.errors
    job.calm(6)
    job.check_resumed()
    row(
        "The embedded Ray breaks",
        caused_by="`SIGKILL` of the raylet that `jacjobs submit` started",
        happens="The command ends, and does not wait for Ray to notice; committed parts stay.",
        code=ended.code,
        says=ended.says,
    )


def test_each_server_of_the_embedded_ray_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its gcs_server, Ray would end this process after a minute, by an abort."""
    servers = [psutil.Popen(["sleep", "60"]) for _ in range(2)]
    monkeypatch.setattr(session, "_SERVERS", servers)
    session.check_servers()
    servers[1].kill()
    wait_for(lambda: servers[1].status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(WorkersError, match=r"sleep was killed, or crashed\); `jacjobs resume` goes on"):
        session.check_servers()
    for server in servers:
        server.kill()
        server.wait()


# -- signals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_stops_the_run(job: TroubledJob, row: Record, number: signal.Signals) -> None:
    """In the process that computes; tests/e2e does it over Ray."""
    job.trouble(5, "hold")
    process = job.start(job.command("submit", str(job.file), "--address", "inline"))
    job.wait_until_met(5)
    send(number, process)
    read_until(process, "stopping")
    job.calm(5)
    ended = ending(process)
    assert ended.code == 75, ended
    assert "resume" in ended.says
    assert not job.relatives()
    job.check_resumed()
    row(
        f"`{number.name}`",
        caused_by=f"`{number.name}` to the command, while a block is computed",
        happens="No new blocks; those on their way are finished, or dropped after 30 s.",
        code=ended.code,
        says=ended.says,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_leaves_at_once(job: TroubledJob, row: Record, number: signal.Signals) -> None:
    job.trouble(5, "hold")
    process = job.start(job.command("submit", str(job.file), "--address", ADDRESS[number]))
    job.wait_until_met(5)
    send(number, process)
    read_until(process, "stopping")
    send(number, process)
    asked = time.monotonic()
    ended = ending(process)
    assert time.monotonic() - asked < 20, "the grace period is 30 s"
    assert ended.code == 75, ended
    assert "resume" in ended.says
    wait_for(lambda: not job.relatives(), 10)
    job.calm(5)
    job.check_resumed()
    row(
        f"`{number.name}`, twice",
        caused_by=f"{SENT[number]}, and again before the block on its way has come",
        happens="The command leaves at once, with all its processes; committed parts stay.",
        code=ended.code,
        says=ended.says,
    )


ADDRESS = {signal.SIGTERM: "inline", signal.SIGINT: "local"}
SENT = {
    signal.SIGTERM: "`SIGTERM` to the command, which computes by itself",
    signal.SIGINT: "`SIGINT` to the command and all it started, as Ctrl-C does",
}


def send(number: signal.Signals, process: psutil.Popen) -> None:
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


# -- workers that hang -------------------------------------------------------------------------------------


@in_this_session
def test_every_worker_hangs_at_one_point(job: TroubledJob, row: Record) -> None:
    job.trouble(11, "hang")
    error = job.failure("compute.block_timeout=4.0")
    assert isinstance(error, IncompleteError)
    assert "points 11:12" in str(error)
    assert "was not there after" in str(error)
    assert len(parts(job.out)) == 2, "the rest is there"
    job.calm(11)
    job.check_resumed()
    row(
        "Every worker hangs at one point",
        caused_by="a function that sleeps for ever there, and `compute.block_timeout=4.0`",
        happens="Three workers are killed over it, then its part is left out; the rest is computed.",
        code=error.exit_code,
        says=str(error),
    )


@in_this_session
def test_a_worker_freezes(job: TroubledJob, row: Record) -> None:
    job.trouble(11, "once freeze")
    job.submit("compute.block_timeout=6.0").wait()
    failures = [failure for failure in job.last_attempt().failures if "points 11:12" in str(failure.blocks)]
    assert len(failures) == 1
    assert parts(job.out) == job.undisturbed()
    # It may freeze with the answer to the block before still on its way; then that one is named.
    cause = failures[0].cause.replace("points 10:11", "points 11:12")
    row(
        "A worker freezes",
        caused_by="`SIGSTOP` of a worker at work, and `compute.block_timeout=6.0`",
        happens="It is killed, and another one gets the block.",
        code=0,
        says=f"{failures[0].who}: {cause}",
    )


@in_this_session
def test_a_worker_hangs_while_another_has_nothing_to_do(job: TroubledJob, row: Record) -> None:
    job.trouble(11, "once hang")
    job.submit("cluster.workers=2").wait()
    attempt = job.last_attempt()
    assert attempt.blocks_repeated >= 1
    assert not attempt.failures
    assert parts(job.out) == job.undisturbed()
    row(
        "A worker hangs, and another one has nothing to do",
        caused_by="a function that sleeps for ever the first time, and a second worker",
        happens="The second one gets the late block too, and the first result counts.",
        code=0,
        says="blocks_repeated: 1, or 2 where another block was waiting for the worker that hangs",
    )


# -- the user's function -----------------------------------------------------------------------------------


@in_this_session
def test_the_function_raises_at_one_point(
    job: TroubledJob, row: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job.trouble(6, "fail")
    monkeypatch.setattr(sys, "argv", ["jacjobs", "submit", str(job.file)])
    with pytest.raises(SystemExit) as caught:
        main()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith("in fn"), "the user's first frame"
    assert "points 6:7" in lines[-1]
    assert len(parts(job.out)) == 1
    job.calm(6)
    job.check_resumed()
    row(
        "The function raises at one point",
        caused_by="a function that does so",
        happens="The run stops at once; the user's own traceback comes first.",
        code=int(str(caught.value.code)),
        says=lines[-1].removeprefix("jacjobs: "),
    )


@in_this_session
def test_the_jacobian_has_a_nan(job: TroubledJob, row: Record) -> None:
    job.trouble(6, "nan")
    error = job.failure()
    assert isinstance(error, NonFiniteError)
    assert "1 entry that is NaN or infinite" in str(error)
    assert "point 6, row 3, column 7" in str(error)
    job.calm(6)
    job.check_resumed()
    row(
        "One entry of J is NaN",
        caused_by="a derivative that is NaN there",
        happens="The run stops at once.",
        code=error.exit_code,
        says=str(error),
    )


@in_this_session
def test_a_module_is_missing_on_the_cluster(
    job: TroubledJob, row: Record, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is in this process only, and what it defines travels by name."""
    module = ModuleType("only_here")
    exec("def fn(x):\n    return x.sin()\n", vars(module))
    monkeypatch.setitem(sys.modules, "only_here", module)
    problem = jacjobs.Problem(module.fn, (torch.ones(5),))
    with pytest.raises(WorkersError) as caught:
        jacjobs.submit(problem, job.out, workers=1, strategy="vjp/loop", chunk=1).wait()
    assert str(caught.value) == "no worker could start: ModuleNotFoundError: No module named 'only_here'"
    row(
        "A module is missing on the cluster",
        caused_by="a function from a module that only the process of `jacjobs submit` has",
        happens="Three workers fail to start.",
        code=caught.value.exit_code,
        says=str(caught.value),
    )


# -- memory and GPUs ---------------------------------------------------------------------------------------


def test_the_memory_of_the_host_is_full(job: TroubledJob, row: Record) -> None:
    """Ray's memory monitor is told of a limit a little above what is used now."""
    job.trouble(11, "eat memory")
    memory = psutil.virtual_memory()
    share = (memory.total - memory.available + 5 * GIB // 2) / memory.total
    limits = {"RAY_memory_usage_threshold": f"{share:.4f}", "RAY_memory_monitor_refresh_ms": "50"}
    ended = ending(job.start(job.command("submit", str(job.file)), limits), 240)
    assert ended.code == 4, ended
    assert "points 11:12" in ended.says
    assert "memory of its node was full" in ended.says
    assert len(parts(job.out)) == 2, "the rest is there"
    job.calm(11)
    job.check_resumed()
    row(
        "The memory of a host is full",
        caused_by="a function that allocates without end at one point; Ray's memory monitor kills the worker",
        happens="A new worker tries again; after three the part is left out, and the rest is computed.",
        code=ended.code,
        says=ended.says,
    )


@in_this_session
def test_memory_is_limited(job: TroubledJob, row: Record) -> None:
    job.trouble(6, "meet a limit")
    error = job.failure()
    assert "MemoryError" in str(error)
    job.calm(6)
    job.check_resumed()
    row(
        "A process may have no more memory",
        caused_by="a limit on addresses (`ulimit -v`) that the function meets, even in its smallest chunk",
        happens="The run stops.",
        code=error.exit_code,
        says=str(error),
    )


@in_this_session
def test_a_gpu_breaks(job: TroubledJob, row: Record) -> None:
    """Without a GPU: what torch raises then, in the first process that comes."""
    job.trouble(6, "once lose the GPU")
    job.submit().wait()
    (failure,) = job.last_attempt().failures
    assert parts(job.out) == job.undisturbed()
    row(
        "A GPU is in an error state",
        caused_by="a `torch.AcceleratorError`, raised in the first process that comes there",
        happens="A process cannot use the GPU after that: a fresh worker computes the block.",
        code=0,
        says=f"{failure.who}: {failure.cause}",
    )


# -- two writers -------------------------------------------------------------------------------------------


def test_a_second_submit_is_refused_and_a_dead_holder_replaced(job: TroubledJob, row: Record) -> None:
    job.trouble(6, "hold")
    process = job.start(job.command("submit", str(job.file), "--address", "inline"))
    job.wait_until_met(6)
    error = job.failure("cluster.address=inline")
    assert isinstance(error, InputError)
    assert f"process {process.pid} on " in str(error)
    process.kill()
    process.wait()
    job.calm(6)
    job.submit("cluster.address=inline").wait()
    assert parts(job.out) == job.undisturbed()
    row(
        "Two runs write to one path",
        caused_by="a second `jacjobs submit` beside one that goes on; then `SIGKILL` of the first, and again",
        happens="The second waits for 15 s, then it is refused. When the first is dead, it takes over.",
        code=error.exit_code,
        says=str(error),
    )


def test_of_two_that_see_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    assert [winners_of_a_stale_lock(tmp_path / str(trial), LocalFolder) for trial in range(50)] == [1] * 50


def test_removing_a_stale_lock_and_making_another_lets_two_in(tmp_path: Path) -> None:
    """The naive way, which the test above would catch."""

    class Naive(LocalFolder):
        def exchange(self, name: str, old: bytes, new: bytes) -> bool:
            self.remove(name)
            return self.create(name, new)

    assert 2 in [winners_of_a_stale_lock(tmp_path / str(trial), Naive) for trial in range(50)]


def winners_of_a_stale_lock(path: Path, folder: type[LocalFolder]) -> int:
    """How many of two get a dead process's lock, if both have seen that it is stale before one acts."""
    both_have_seen = threading.Barrier(2)

    class Slow(folder):  # type: ignore[misc,valid-type]
        def exchange(self, name: str, old: bytes, new: bytes) -> bool:
            both_have_seen.wait(timeout=10)
            return bool(super().exchange(name, old, new))

    place = Slow(path)
    place.prepare()
    dead = {"host": socket.gethostname(), "pid": 0, "started": 0, "token": "of the dead"}
    place.create(lock.NAME, json.dumps(dead).encode())
    winners = []

    def acquire() -> None:
        mine = RunLock(place)
        with suppress(InputError):
            mine.acquire(patience_seconds=0)
            winners.append(mine)

    threads = [threading.Thread(target=acquire, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for winner in winners:
        winner.release()
    return len(winners)


def test_a_suspended_holder_leaves_the_run_to_whoever_took_it(
    job: TroubledJob, row: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    errors: list[jacjobs.JacjobsError] = []
    job.trouble(6, "hold")
    first = threading.Thread(target=lambda: errors.append(job.failure("cluster.address=inline")), daemon=True)
    first.start()
    job.wait_until_met(6)
    second = RunLock(LocalFolder(job.out))
    with monkeypatch.context() as patch:
        patch.setattr(lock, "_alive", lambda holder: False)
        second.acquire()
    half_a_part = job.out / "_jacjobs" / "scratch" / "of-the-second"
    half_a_part.touch()
    wait_for(lambda: sum("_beat" in thread.name for thread in threading.enumerate()) == 1)
    job.calm(6)
    first.join(timeout=60)
    (error,) = errors
    assert isinstance(error, StoreError)
    assert half_a_part.exists(), "only the holder of the lock clears up"
    second.check()
    second.release()
    job.check_resumed()
    row(
        "A process that was suspended wakes, and another one has taken its run over",
        caused_by="a lock that another holder took, since its own showed no life",
        happens="It stops, and leaves the lock and all files to the other.",
        code=error.exit_code,
        says=str(error),
    )
