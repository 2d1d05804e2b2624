"""The Ray executor: workers and assemblers as actors. The only file that imports ray.

Ray's own retries stay off: the ledger decides what is done again, and a death keeps its reason. Block data
goes from worker to assembler through the object store; the coordinator only sees metadata.

Only what computes imports torch: the actors that do not are smaller by 300 MiB, and there sooner.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import psutil
import pyarrow
import ray
from numpy.typing import NDArray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jacjobs.errors import DeviceLostError, InputError, JacjobsError, WorkersError
from jacjobs.planning.choice import Chooser, Resources, Timing
from jacjobs.planning.options import ClusterOptions
from jacjobs.planning.planner import Plan
from jacjobs.run.assembler import Assembler
from jacjobs.run.coordinator import Coordinator, Progress, part_metadata
from jacjobs.run.messages import (
    Abandon,
    Absorb,
    AssemblerJoined,
    AssemblerLost,
    BlockAbsorbed,
    BlockComputed,
    BlockId,
    BlockLost,
    BlockRaised,
    Command,
    Compute,
    Drop,
    Event,
    Findings,
    Kill,
    Ping,
    StartAssembler,
    StartWorker,
    Sweep,
    Transpose,
    Transposed,
    TransposeLost,
    WorkerAlive,
    WorkerJoined,
    WorkerLost,
    WriteFailed,
)
from jacjobs.run.roster import IN_FLIGHT
from jacjobs.run.transposer import TRANSPOSES
from jacjobs.store.folder import Manifest, RunRecord
from jacjobs.store.writer import PartRecord

if TYPE_CHECKING:
    from jacjobs.problem import Problem

ASSEMBLER_THREADS = 2
GET_TIMEOUT_SECONDS = 60.0
TUNE_TIMEOUT_SECONDS = 300.0
"""For a worker to start, on a cluster that may have to make room, and to time chunks."""
CONNECT_TIMEOUT_SECONDS = 5.0
SMALLEST_STORE_BYTES = 128 << 20
ENVIRONMENT = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
"""Of a worker's process, before it starts. Chunks allocate and free the same large tensors over and over; by
default each comes from the system page by page and goes back. Huge pages (a switch of torch's) and a heap
that is kept make products on a CPU up to three times as fast: docs/decisions/0010."""


@dataclass(frozen=True)
class Payload:
    """A problem on its way to workers, with the folders in which this process finds its modules."""

    problem: bytes
    search_path: tuple[str, ...]

    @classmethod
    def pack(cls, problem: Problem, modules: Sequence[ModuleType] = ()) -> Payload:
        """`modules` travel by value: no name finds them, such as the file beside a job file."""
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
        return cls(cloudpickle.dumps(problem), tuple(os.path.realpath(folder) for folder in sys.path))

    def unpack(self) -> Problem:
        sys.path += [folder for folder in self.search_path if folder not in sys.path]
        problem: Problem = cloudpickle.loads(self.problem)
        return problem


# -- actors ------------------------------------------------------------------------------------------------


class _WorkerActor:
    def __init__(self, payload: Payload, plan: str) -> None:
        from jacjobs.run.worker import Worker

        self._worker = Worker(
            payload.unpack(), Plan.model_validate_json(plan), "cuda" if ray.get_gpu_ids() else "cpu"
        )

    def ready(self) -> tuple[str, str]:
        """Its node, and the GPUs that it has."""
        return _node(), ", ".join(f"GPU {number}" for number in ray.get_gpu_ids())

    def ping(self) -> None:
        return None

    @ray.method(num_returns=2)  # type: ignore[untyped-decorator]
    def compute(self, block: BlockId) -> tuple[NDArray[Any] | None, Findings | JacjobsError]:
        """The entries, and apart from them what was noticed: or the error that the user made."""
        try:
            computed = self._worker.compute(block)
        except DeviceLostError:
            raise  # the executor ends this process, and another one goes on
        except JacjobsError as error:
            return None, error
        return computed.values, computed.findings


class _TunerActor:
    """A worker that never gets a block: it says what its device is, and times chunks there."""

    def __init__(self, payload: Payload, cluster: ClusterOptions, workers: int) -> None:
        from jacjobs.run.tuner import Tuner

        self._cluster, self._workers = cluster, workers
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        self._tuner = Tuner(payload.unpack(), cluster.cpus_per_worker, device)

    def resources(self, memory: float | str | None, path: str) -> Resources:
        from jacjobs.run.resources import resources_here

        return resources_here(self._cluster, memory, path, self._workers)

    def tune(self, chooser: Chooser, limit_seconds: float) -> list[Timing]:
        return self._tuner.tune(chooser, limit_seconds)


class _AssemblerActor:
    def __init__(self, path: str, plan: str, metadata: dict[str, str]) -> None:
        # Arrow's default allocator keeps a third more for itself than jemalloc, which not all builds have.
        with suppress(NotImplementedError):
            pyarrow.set_memory_pool(pyarrow.jemalloc_memory_pool())
        self._assembler = Assembler(path, Plan.model_validate_json(plan), metadata)

    def ready(self) -> str:
        return _node()

    def absorb(
        self, block: BlockId, values: NDArray[Any]
    ) -> PartRecord | Literal["spill"] | JacjobsError | None:
        try:
            return self._assembler.absorb(block, values)
        except JacjobsError as error:
            return error

    def transpose(self, part: int) -> PartRecord | JacjobsError:
        try:
            return self._assembler.transpose(part)
        except JacjobsError as error:
            return error

    def abandon(self, bundle: int) -> None:
        self._assembler.abandon(bundle)

    def sweep(self, point: int) -> None:
        self._assembler.sweep(point)


class _CoordinatorActor:
    """Named after the run; asks for no CPU. Whoever watches may come and go."""

    def __init__(self, record: RunRecord, path: str, payload: Payload, placement: Placement) -> None:
        plan = Plan.model_validate(record.plan)
        self._coordinator = Coordinator(
            record,
            path,
            lambda: RayExecutor(payload, plan, path, part_metadata(record), placement.gpus_per_worker),
            workers=placement.workers,
        )

    def run(self) -> Manifest | JacjobsError:
        try:
            return self._coordinator.run()
        except JacjobsError as error:
            return error

    def progress(self) -> Progress:
        return self._coordinator.progress()

    def stop(self) -> None:
        self._coordinator.stop()


def _node() -> str:
    """The host, and the node of the cluster: tests have several on one host."""
    return f"{socket.gethostname()}, node {ray.get_runtime_context().get_node_id()[:8]}"


def _worker_options(threads: int, gpus: int) -> dict[str, Any]:
    """What an actor that computes asks for. What the user has set of the environment stays."""
    environment = {key: value for key, value in ENVIRONMENT.items() if key not in os.environ}
    return {
        "num_cpus": threads,
        "num_gpus": gpus,
        "max_restarts": 0,
        "runtime_env": {"env_vars": environment},
    }


class RemoteTuner:
    """A tuner on a worker's device, started when first asked."""

    def __init__(self, payload: Payload, cluster: ClusterOptions, placement: Placement) -> None:
        self._arguments = payload, cluster, placement.workers
        self._options = _worker_options(cluster.cpus_per_worker, placement.gpus_per_worker)
        self._actor: Any = None

    def resources(self, memory: float | str | None, path: str) -> Resources:
        """Of the worker's device, and the disk that it sees at `path`."""
        resources: Resources = self._ask("resources", memory, path)
        return resources

    def tune(self, chooser: Chooser, limit_seconds: float) -> list[Timing]:
        """Nothing, where that fails: the plan as it is predicted has to do, and its workers will say why."""
        try:
            timings: list[Timing] = self._ask("tune", chooser, limit_seconds)
        except WorkersError:
            return []
        return timings

    def close(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)

    def _ask(self, method: str, *arguments: Any) -> Any:
        if self._actor is None:
            self._actor = ray.remote(_TunerActor).options(**self._options).remote(*self._arguments)
        try:
            return ray.get(getattr(self._actor, method).remote(*arguments), timeout=TUNE_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            raise WorkersError(f"the worker that was to time chunks is gone: {_cause(error)}") from None


@contextmanager
def worker_tuner(payload: Payload, cluster: ClusterOptions, placement: Placement) -> Iterator[RemoteTuner]:
    tuner = RemoteTuner(payload, cluster, placement)
    try:
        yield tuner
    finally:
        tuner.close()


# -- the executor ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """What a reference that is waited for stands for."""

    kind: str  # worker-ready | assembler-ready | ping | compute | absorb | transpose
    actor: str
    block: BlockId | None = None
    worker: str = ""
    part: int = -1


class RayExecutor:
    def __init__(
        self, payload: Payload, plan: Plan, path: str, metadata: dict[str, str], gpus_per_worker: int = 0
    ) -> None:
        self._payload = ray.put(payload)
        self._plan = plan.model_dump_json()
        self._path = path
        self._metadata = metadata
        self._worker_options = _worker_options(plan.threads, gpus_per_worker)
        self._assembler_threads = ASSEMBLER_THREADS + (TRANSPOSES if plan.tiling.spills else 0)
        self._actors: dict[str, Any] = {}
        self._calls: dict[Any, _Call] = {}
        self._data: dict[tuple[str, BlockId], Any] = {}
        self._numbers = itertools.count()

    def execute(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case StartWorker():
                    actor = ray.remote(_WorkerActor).options(
                        **self._worker_options, scheduling_strategy="SPREAD"
                    )
                    self._start("worker", actor.remote(self._payload, self._plan))
                case StartAssembler():
                    actor = ray.remote(_AssemblerActor).options(
                        num_cpus=0, max_restarts=0, max_concurrency=self._assembler_threads
                    )
                    self._start("assembler", actor.remote(self._path, self._plan, self._metadata))
                case Compute(worker, block):
                    data, result = self._actors[worker].compute.remote(block)
                    self._data[worker, block] = data
                    self._calls[result] = _Call("compute", worker, block, worker)
                case Absorb(assembler, block, worker):
                    done = self._actors[assembler].absorb.remote(block, self._data[worker, block])
                    self._calls[done] = _Call("absorb", assembler, block, worker)
                case Ping(worker):
                    self._calls[self._actors[worker].ping.remote()] = _Call("ping", worker)
                case Kill(actor):
                    self._end(actor)
                case Drop(block, worker):
                    self._data.pop((worker, block), None)
                case Abandon(assembler, bundle):
                    self._actors[assembler].abandon.remote(bundle)
                case Transpose(assembler, part):
                    done = self._actors[assembler].transpose.remote(part)
                    self._calls[done] = _Call("transpose", assembler, part=part)
                case Sweep(assembler, point):
                    self._actors[assembler].sweep.remote(point)

    def poll(self, timeout_seconds: float) -> Iterator[Event]:
        waiting = list(self._calls)
        if not waiting:
            time.sleep(timeout_seconds)
            return
        ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout_seconds, fetch_local=False)
        if ready:
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        for ref in ready:
            # One by one: what answers an event may still need an actor that the next one reports lost.
            event = self._event(ref)
            if event is not None:
                yield event

    def close(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        self._calls.clear()
        self._data.clear()

    def _start(self, kind: str, actor: Any) -> None:
        name = f"{kind}-{next(self._numbers)}"
        self._actors[name] = actor
        self._calls[actor.ready.remote()] = _Call(f"{kind}-ready", name)

    def _event(self, ref: Any) -> Event | None:
        call = self._calls.pop(ref, None)
        if call is None:  # the actor behind it was reported lost a moment ago
            return None
        try:
            result = ray.get(ref, timeout=GET_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            return self._failed(call, error)
        return self._answer(call, result)

    def _failed(self, call: _Call, error: ray.exceptions.RayError) -> Event:
        """No answer came. Either what the actor was to work with is gone, or what it did failed, or it died,
        which Ray reports in many ways.
        """
        data_lost = isinstance(_origin(error), ray.exceptions.ObjectLostError)
        if call.kind == "absorb" and call.block is not None and data_lost:
            self._data.pop((call.worker, call.block), None)
            return BlockLost(call.actor, call.block, _cause(error))
        if call.kind == "transpose" and isinstance(error, ray.exceptions.RayTaskError):
            return TransposeLost(call.actor, call.part, _cause(error))
        # An assembler that raised has given up the bundle, with all that was in it: it counts as dead too.
        return self._lose(call, _cause(error))

    def _answer(self, call: _Call, result: Any) -> Event:
        if call.kind == "worker-ready":
            return WorkerJoined(call.actor, *result)
        if call.kind == "ping":
            return WorkerAlive(call.actor)
        if call.kind == "assembler-ready":
            return AssemblerJoined(call.actor, result)
        if call.kind == "transpose":
            if isinstance(result, JacjobsError):
                return WriteFailed(result)
            return Transposed(call.actor, call.part, result)
        assert call.block is not None
        if call.kind == "compute":
            if isinstance(result, JacjobsError):
                return BlockRaised(call.block, result)
            return BlockComputed(call.actor, call.block, result)
        if isinstance(result, JacjobsError):
            return WriteFailed(result)
        self._data.pop((call.worker, call.block), None)
        return BlockAbsorbed(call.actor, call.block, result)

    def _lose(self, call: _Call, cause: str) -> Event:
        """Report the actor lost, once: whatever else was asked of it is forgotten.

        What a worker had computed is still in the object store, and stays at hand.
        """
        self._end(call.actor, call)
        if call.kind in ("assembler-ready", "absorb", "transpose"):
            return AssemblerLost(call.actor, cause)
        return WorkerLost(call.actor, cause)

    def _end(self, name: str, *asked: _Call) -> None:
        """Kill an actor, and forget what was asked of it: `asked`, and what is still waited for."""
        calls = [*asked, *(call for call in self._calls.values() if call.actor == name)]
        self._calls = {ref: call for ref, call in self._calls.items() if call.actor != name}
        for call in calls:
            if call.kind == "compute" and call.block is not None:
                self._data.pop((call.worker, call.block), None)
        if name in self._actors:
            ray.kill(self._actors.pop(name))


def _origin(error: BaseException) -> BaseException:
    """What an actor raised, or what kept it from its work."""
    cause: BaseException = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return cause


def _cause(error: BaseException) -> str:
    """What happened, in one line, of an error that Ray spreads over many."""
    origin, said = _origin(error), str(error)
    if isinstance(origin, JacjobsError):
        return str(origin)
    if isinstance(origin, ray.exceptions.OutOfMemoryError):
        full = _MEMORY_FULL.search(said)
        return f"killed, since the memory of its node was full{f' ({full[1]})' if full else ''}"
    if isinstance(origin, ray.exceptions.ObjectLostError):
        return "its data was on a node that is gone"
    for words, meaning in _MEANINGS.items():
        if words in said:
            return meaning
    raised = _RAISED.findall(said)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return str(raised[-1]) if raised else lines[-1] if lines else type(error).__name__


_MEMORY_FULL = re.compile(r"was (\S+ used / \S+) limit")
_RAISED = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception|Exit|Interrupt)\b.*)$", re.MULTILINE)
_MEANINGS = {
    "Worker unexpectedly exits": "its process was killed, or crashed",
    "actor's node was terminated": "its node is gone",
    "actor's node was preempted": "its node was preempted",
    "is unavailable": "it cannot be reached",
    "its owner has died": "the process that started it is gone",
}
"""What Ray says of a death, and what that means."""


# -- sessions and runs -------------------------------------------------------------------------------------


@contextmanager
def session(options: ClusterOptions, block_bytes: int) -> Iterator[None]:
    """A Ray to work in: the one this process is already in, an existing cluster, or an embedded one.

    Only what was started here is shut down. Raises InputError where the address leads nowhere.
    """
    if ray.is_initialized() and options.address in ("local", "auto"):
        yield
        return
    try:
        if options.address == "local":
            from jacjobs.run.resources import local_workers

            workers = local_workers(options)
            # Blocks on their way, once more for those being absorbed, and room to breathe.
            store = max(SMALLEST_STORE_BYTES, (2 * IN_FLIGHT * workers + 2) * block_bytes)
            ray.init(
                address="local",
                num_cpus=workers * options.cpus_per_worker,
                object_store_memory=store,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            _knock(options.address)
            ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise InputError.about(
            "cluster.address",
            got=f"{options.address!r} ({_cause(error)})",
            expected="local, inline, auto, or the address of a running Ray cluster",
            do="check the address, or start one with `ray start --head`",
        ) from None
    if options.address == "local":
        _SERVERS.extend(child for child in psutil.Process().children() if child.name() in SERVERS)
    try:
        yield
    finally:
        _SERVERS.clear()
        ray.shutdown()


SERVERS = ("gcs_server", "raylet")
_SERVERS: list[psutil.Process] = []
"""Those of the embedded Ray, as long as there is one."""


def _check_servers() -> None:
    """Raises WorkersError if the embedded Ray is broken. Ray itself would notice after a quarter of a minute,
    or end this process after a whole one.
    """
    for server in _SERVERS:
        if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE:
            raise WorkersError(
                f"the Ray that this process started is gone ({server.name()} was killed, or crashed); "
                "`jacjobs resume` goes on"
            )


def _knock(address: str) -> None:
    """Ray waits for minutes at a door behind which nobody is; a connection tells at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()


class RayRun:
    """A run whose coordinator is an actor; this process only watches."""

    def __init__(self, record: RunRecord, path: str, payload: Payload, placement: Placement) -> None:
        where = hashlib.sha256(path.encode()).hexdigest()[:8]
        # Beside this process, without which it ends anyway: no other node that is lost takes it along. (A
        # soft affinity is none: Ray puts an actor that asks for no CPU on any node then.)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._coordinator = (
            ray.remote(_CoordinatorActor)
            .options(
                num_cpus=0,
                max_restarts=0,
                max_concurrency=4,
                name=f"jacjobs-{record.run}-{where}",
                scheduling_strategy=here,
            )
            .remote(record, path, payload, placement)
        )
        self._result = self._coordinator.run.remote()

    def result(self) -> Manifest:
        """Wait for the end. Raises what `Coordinator.run` raises."""
        while not ray.wait([self._result], timeout=0.2)[0]:
            _check_servers()
        try:
            result: Manifest | JacjobsError = ray.get(self._result, timeout=GET_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            raise WorkersError(f"the coordinator died ({_cause(error)}); `jacjobs resume` goes on") from None
        finally:
            ray.kill(self._coordinator)
        if isinstance(result, JacjobsError):
            raise result
        return result

    def progress(self) -> Progress | None:
        """None while the coordinator does not answer: before it is up, and after it is gone."""
        try:
            progress: Progress = ray.get(self._coordinator.progress.remote(), timeout=5.0)
        except ray.exceptions.RayError:
            return None
        return progress

    def stop(self) -> None:
        self._coordinator.stop.remote()


@dataclass(frozen=True)
class Placement:
    """How many workers, and what each asks for."""

    workers: int
    gpus_per_worker: int


def place(options: ClusterOptions) -> Placement:
    """Fit the workers to the cluster this process is connected to; refuse what it does not have."""
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    each = int(gpus > 0) if options.gpus_per_worker == "auto" else options.gpus_per_worker
    fit = cpus // options.cpus_per_worker
    if each:
        fit = min(fit, gpus // each)
    workers = fit if options.workers == "auto" else options.workers
    if workers < 1 or workers > fit:
        raise InputError.about(
            "cluster.workers",
            got=f"{options.workers} (with {options.cpus_per_worker} CPUs and {each} GPUs each)",
            expected=f"at most {fit}: the cluster has {cpus} CPUs and {gpus} GPUs",
            do="ask for fewer workers or smaller ones",
        )
    return Placement(workers, each)
