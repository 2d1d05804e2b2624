"""The actors that compute and assemble: thin wrappers around plain classes, which a test can use without Ray.

Only what computes imports torch, and SciPy where J is sparse: the actors that do not are smaller by 300 MiB,
and there sooner.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import pyarrow
import ray
from numpy.typing import NDArray
from ray import ObjectRef, cloudpickle
from ray.actor import ActorHandle

from jacjobs.errors import DeviceLostError, JacjobsError
from jacjobs.planning.choice import Chooser, Resources, Timing
from jacjobs.planning.options import ClusterOptions
from jacjobs.planning.planner import Plan
from jacjobs.run.assembler import Assembler, BundleAssembler
from jacjobs.run.messages import BlockId
from jacjobs.store.writer import PartRecord

if TYPE_CHECKING:
    from jacjobs.problem import Problem

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
    """A problem on its way to workers, with the folders in which this process finds its modules.

    on_host:  whether it was on the host: then all its tensors go where it is computed.
    trace:  of the problem, pickled, where it became known later. Without it a worker looks at the problem for
            itself, and loads what torch needs to run functions on fakes: a second.
    """

    problem: bytes
    search_path: tuple[str, ...]
    on_host: bool = True
    trace: bytes = b""

    @classmethod
    def pack(cls, problem: Problem, modules: Sequence[ModuleType] = ()) -> Payload:
        """`modules` travel by value: no name finds them, such as the file beside a job file."""
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
        bare = problem.with_leaves(problem.leaves)
        bare.pattern = None  # workers are told what was made of it
        folders = tuple(os.path.realpath(folder) for folder in sys.path)
        on_host = not any(problem.leaves[index].is_cuda for index in problem.wanted)
        return cls(cloudpickle.dumps(bare), folders, on_host)

    def knowing(self, problem: Problem) -> Payload:
        """The same, of the problem that was looked at meanwhile."""
        return replace(self, trace=cloudpickle.dumps(problem.trace))

    def unpack(self, device: str) -> Problem:
        """On `device`, with what the function captured."""
        from jacjobs.run.unpacking import unpack

        sys.path += [folder for folder in self.search_path if folder not in sys.path]
        problem: Problem = unpack(self.problem, device, from_host=self.on_host)
        return problem


class WorkerActor:
    """Holds the problem from the start; it can time chunks before it is told the plan, and computes after."""

    def __init__(self, payload: Payload) -> None:
        import torch

        # A GPU that torch cannot use here is none: then the plan is made for the host.
        self._device = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        self._problem = payload.unpack(self._device)
        self._payload = payload if self._device != "cpu" else None  # elsewhere the plan may be for the host

    def resources(
        self, cluster: ClusterOptions, memory: float | str | None, path: str, workers: int
    ) -> Resources:
        from jacjobs.run.resources import resources_here

        return resources_here(cluster, memory, path, workers)

    def tune(self, threads: int, chooser: Chooser, limit_seconds: float, trace: bytes) -> list[Timing]:
        from jacjobs.run.tuner import Tuner

        self._know(trace)
        return Tuner(self._problem, threads, self._device).tune(chooser, limit_seconds)

    def begin(self, plan: str, trace: bytes, pattern: dict[str, NDArray[Any]] | None) -> tuple[str, str]:
        """Be ready for blocks. Returns its node, and the GPUs that it has.

        trace:    what became known of the problem since it was sent; empty, if nothing did.
        pattern:  of a sparse J, as `RunFolder.pattern` gives it.
        """
        from jacjobs.run.worker import BlockWorker, Worker

        made = Plan.model_validate_json(plan)
        if made.resources.device.host and self._payload is not None:  # it began where there was no GPU
            self._device = "cpu"
            self._problem = self._payload.unpack("cpu")
        self._know(trace)
        self._worker: BlockWorker
        if pattern is None:
            self._worker = Worker(self._problem, made, self._device)
        else:
            from jacjobs.run.sparse_worker import SparseWorker
            from jacjobs.structure.coloured import Coloured

            self._worker = SparseWorker(self._problem, made, Coloured.of_arrays(pattern), self._device)
        del self._problem, self._payload  # the worker has what it needs
        return _node(), ", ".join(f"GPU {number}" for number in ray.get_gpu_ids())

    def _know(self, trace: bytes) -> None:
        if trace:
            self._problem.trace = cloudpickle.loads(trace)

    def ping(self) -> None:
        return None

    @ray.method(num_returns=2)  # type: ignore[untyped-decorator]
    def compute(
        self, blocks: list[tuple[int, int]]
    ) -> tuple[list[NDArray[Any]], list[tuple[Any, ...] | JacjobsError]]:
        """The entries of each block, and apart from them what was noticed; or the error that the user made,
        with which it ends. In tuples of numbers, which Ray carries without pickle.
        """
        entries: list[NDArray[Any]] = []
        noticed: list[tuple[Any, ...] | JacjobsError] = []
        try:
            for block in blocks:
                computed = self._worker.compute(BlockId(*block))
                entries.append(computed.values)
                noticed.append(tuple(computed.findings))
        except DeviceLostError:
            raise  # the executor ends this process, and another one goes on
        except JacjobsError as error:
            noticed.append(error)
        return entries, noticed


class AssemblerActor:
    def __init__(
        self, path: str, plan: str, metadata: dict[str, str], pattern: dict[str, NDArray[Any]] | None
    ) -> None:
        # Arrow's default allocator keeps a third more for itself than jemalloc, which not all builds have.
        with suppress(NotImplementedError):
            pyarrow.set_memory_pool(pyarrow.jemalloc_memory_pool())
        made = Plan.model_validate_json(plan)
        self._assembler: BundleAssembler
        if pattern is None:
            self._assembler = Assembler(path, made, metadata)
        else:
            from jacjobs.run.sparse_assembler import SparseAssembler
            from jacjobs.structure.coloured import Coloured

            self._assembler = SparseAssembler(path, made, metadata, Coloured.of_arrays(pattern))

    def ready(self) -> str:
        return _node()

    def absorb(
        self, blocks: list[tuple[int, int, int, int]], *sources: list[NDArray[Any]]
    ) -> list[PartRecord | Literal["spill"] | JacjobsError | None]:
        """Blocks, each with the source that holds its entries, and the place there. Ends with an error."""
        done: list[PartRecord | Literal["spill"] | JacjobsError | None] = []
        try:
            for bundle, position, source, place in blocks:
                done.append(self._assembler.absorb(BlockId(bundle, position), sources[source][place]))
        except JacjobsError as error:
            done.append(error)
        return done

    def transpose(self, part: int) -> PartRecord | JacjobsError:
        try:
            return self._assembler.transpose(part)
        except JacjobsError as error:
            return error

    def abandon(self, bundle: int) -> None:
        self._assembler.abandon(bundle)

    def sweep(self, point: int) -> None:
        self._assembler.sweep(point)

    def close(self) -> None:
        self._assembler.close()


def _node() -> str:
    """The host, and the node of the cluster: tests have several on one host."""
    return f"{socket.gethostname()}, node {ray.get_runtime_context().get_node_id()[:8]}"


def start_worker(payload: ObjectRef[Payload], cpus: int, gpus: float) -> ActorHandle:
    """One more worker, on the node that has the most room. What the user has set of the environment stays."""
    environment = {key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()}
    actor = ray.remote(WorkerActor).options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_restarts=0,
        runtime_env={"env_vars": environment},
        scheduling_strategy="SPREAD",
    )
    handle: ActorHandle = actor.remote(payload)
    return handle
