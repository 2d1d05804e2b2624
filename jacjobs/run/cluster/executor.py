"""The Ray executor: carries the ledger's commands out with actors, and turns their answers into events."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import ray

from jacjobs.errors import JacjobsError
from jacjobs.planning.planner import Plan
from jacjobs.run.cluster.actors import AssemblerActor, Payload, start_worker
from jacjobs.run.cluster.causes import cause_of, origin_of
from jacjobs.run.cluster.session import Placement
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
    Capacity,
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
from jacjobs.run.transposer import TRANSPOSES
from jacjobs.store.folder import RunFolder

ASSEMBLER_THREADS = 2
GET_TIMEOUT_SECONDS = 60.0
CLOSE_SECONDS = 5.0
"""What assemblers get to remove files that are half written."""
LOOK_SECONDS = 2.0
"""How often the cluster is looked at, where the workers follow it."""


class Call(NamedTuple):
    """What a reference that is waited for stands for."""

    kind: Literal["worker-ready", "assembler-ready", "ping", "compute", "absorb", "transpose"]
    actor: str
    blocks: tuple[tuple[str, BlockId], ...] = ()
    """Each with the worker that computes it, or did."""
    part: int = -1


class RayExecutor:
    def __init__(
        self,
        payload: Payload,
        plan: Plan,
        path: str,
        metadata: dict[str, str],
        placement: Placement,
        engaged: Sequence[Any] = (),
    ) -> None:
        """engaged: workers that are there already, to be taken before any is started."""
        self._payload, self._trace = ray.put(payload), payload.trace
        self._plan = plan.model_dump_json()
        self._pattern = None if plan.groups is None else ray.put(RunFolder(path).pattern(plan.pattern))
        self._path = path
        self._metadata = metadata
        self._threads = plan.threads
        self._placement = placement
        self._looked, self._room = time.monotonic(), placement.workers
        self._assembler_threads = ASSEMBLER_THREADS + (TRANSPOSES if plan.tiling.spills else 0)
        self._engaged = list(engaged)
        self._actors: dict[str, Any] = {}
        self._calls: dict[Any, Call] = {}
        self._data: dict[tuple[str, BlockId], tuple[Any, int]] = {}
        """Of a block and who computes it, or did: the reference to all of that call, and its place there."""
        self._gathered: dict[str, list[tuple[str, BlockId]]] = {}
        """For each actor, what it will be asked for in one call. Of one kind: a worker computes, an assembler
        absorbs.
        """
        self._numbers = itertools.count()

    def execute(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Compute(worker, block, together):
                    self._gather(worker, (worker, block), together)
                    continue
                case Absorb(assembler, block, worker, together):
                    self._gather(assembler, (worker, block), together)
                    continue
            self._send_all()
            match command:
                case StartWorker():
                    gpus = self._placement.gpus_per_worker
                    actor = (
                        self._engaged.pop(0)
                        if self._engaged
                        else start_worker(self._payload, self._threads, gpus)
                    )
                    name = self._named("worker", actor)
                    begun = self._actors[name].begin.remote(self._plan, self._trace, self._pattern)
                    self._calls[begun] = Call("worker-ready", name)
                case StartAssembler():
                    actor = ray.remote(AssemblerActor).options(
                        num_cpus=0,
                        max_restarts=0,
                        max_concurrency=self._assembler_threads,
                        scheduling_strategy="SPREAD" if self._placement.assemblers > 1 else "DEFAULT",
                    )
                    name = self._named(
                        "assembler", actor.remote(self._path, self._plan, self._metadata, self._pattern)
                    )
                    self._calls[self._actors[name].ready.remote()] = Call("assembler-ready", name)
                case Ping(worker):
                    self._calls[self._actors[worker].ping.remote()] = Call("ping", worker)
                case Kill(actor):
                    self._end(actor)
                case Drop(block, worker):
                    self._data.pop((worker, block), None)
                case Abandon(assembler, bundle):
                    self._actors[assembler].abandon.remote(bundle)
                case Transpose(assembler, part):
                    done = self._actors[assembler].transpose.remote(part)
                    self._calls[done] = Call("transpose", assembler, part=part)
                case Sweep(assembler, point):
                    self._actors[assembler].sweep.remote(point)
        self._dismiss()

    def poll(self, timeout_seconds: float) -> Iterator[Event]:
        self._send_all()
        yield from self._look_around()
        waiting = list(self._calls)
        if not waiting:
            time.sleep(timeout_seconds)
            return
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        if not ready:
            ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout_seconds, fetch_local=False)
        for ref in ready:
            # One by one: what answers an event may still need an actor that the next one reports lost.
            yield from self._events(ref)

    def close(self) -> None:
        """No actor writes any more when this returns, unless its file system hangs."""
        closed = [
            actor.close.remote() for name, actor in self._actors.items() if name.startswith("assembler")
        ]
        if closed:
            ray.wait(closed, num_returns=len(closed), timeout=CLOSE_SECONDS, fetch_local=False)
        for actor in self._actors.values():
            ray.kill(actor)
        self._dismiss()
        self._actors.clear()
        self._calls.clear()
        self._data.clear()
        self._gathered.clear()

    def _look_around(self) -> Iterator[Event]:
        """Has the cluster grown or shrunk?"""
        if self._placement.follow and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            room = self._placement.now()
            if room != self._room:
                self._room = room
                yield Capacity(room)

    def _named(self, kind: Literal["worker", "assembler"], actor: Any) -> str:
        name = f"{kind}-{next(self._numbers)}"
        self._actors[name] = actor
        return name

    def _dismiss(self) -> None:
        """Those that were engaged for nothing: they keep others from starting."""
        while self._engaged:
            ray.kill(self._engaged.pop())

    # -- asking --------------------------------------------------------------------------------------------

    def _gather(self, actor: str, what: tuple[str, BlockId], together: int) -> None:
        gathered = self._gathered.setdefault(actor, [])
        gathered.append(what)
        if len(gathered) >= together:
            self._send(actor)

    def _send_all(self) -> None:
        for actor in list(self._gathered):
            self._send(actor)

    def _send(self, name: str) -> None:
        """Ask an actor for what was gathered for it."""
        blocks = tuple(self._gathered.pop(name))
        actor = self._actors[name]
        if blocks[0][0] == name:  # its own blocks: it is a worker
            data, noticed = actor.compute.remote([tuple(block) for _, block in blocks])
            self._data.update((each, (data, place)) for place, each in enumerate(blocks))
            self._calls[noticed] = Call("compute", name, blocks)
            return
        sources: dict[Any, int] = {}
        asked = []
        for worker, block in blocks:
            source, place = self._data[worker, block]
            asked.append((*block, sources.setdefault(source, len(sources)), place))
        self._calls[actor.absorb.remote(asked, *sources)] = Call("absorb", name, blocks)

    # -- answers -------------------------------------------------------------------------------------------

    def _events(self, ref: Any) -> Iterable[Event]:
        call = self._calls.pop(ref, None)
        if call is None:  # the actor behind it was reported lost a moment ago
            return ()
        try:
            result = ray.get(ref, timeout=GET_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            return self._failed(call, error)
        return self._answer(call, result)

    def _failed(self, call: Call, error: ray.exceptions.RayError) -> Iterable[Event]:
        """No answer came. Either what the actor was to work with is gone, or what it did failed, or it died,
        which Ray reports in many ways.
        """
        if call.kind == "absorb" and isinstance(origin_of(error), ray.exceptions.ObjectLostError):
            return list(self._lost(call, origin_of(error)))
        if call.kind == "transpose" and isinstance(error, ray.exceptions.RayTaskError):
            return [TransposeLost(call.actor, call.part, cause_of(error))]
        # An assembler that raised has given up the bundle, with all that was in it: it counts as dead too.
        return [self._lose(call, cause_of(error))]

    def _lost(self, call: Call, error: BaseException) -> Iterator[Event]:
        """One source of a call was lost, and so nothing of it was done. What others hold is asked for again,
        alone.
        """
        lost = getattr(error, "object_ref_hex", None)
        sources = {each: self._data[each][0].hex() for each in call.blocks}
        if lost not in sources.values():
            lost = None
        for worker, block in call.blocks:
            if lost in (None, sources[worker, block]):
                self._data.pop((worker, block))
                yield BlockLost(call.actor, block, cause_of(error))
            else:
                self._gather(call.actor, (worker, block), together=1)

    def _answer(self, call: Call, result: Any) -> Iterator[Event]:
        match call.kind:
            case "worker-ready":
                yield WorkerJoined(call.actor, *result)
            case "assembler-ready":
                yield AssemblerJoined(call.actor, result)
            case "ping":
                yield WorkerAlive(call.actor)
            case "transpose":
                failed = isinstance(result, JacjobsError)
                yield WriteFailed(result) if failed else Transposed(call.actor, call.part, result)
            case "compute":
                for (_, block), noticed in zip(call.blocks, result, strict=False):
                    if isinstance(noticed, JacjobsError):
                        yield BlockRaised(block, noticed)
                    else:
                        yield BlockComputed(call.actor, block, Findings(*noticed))
            case "absorb":
                for (worker, block), done in zip(call.blocks, result, strict=False):
                    if isinstance(done, JacjobsError):
                        yield WriteFailed(done)
                    else:
                        self._data.pop((worker, block), None)
                        yield BlockAbsorbed(call.actor, block, done)

    def _lose(self, call: Call, cause: str) -> Event:
        """Report the actor lost, once: whatever else was asked of it is forgotten.

        What a worker had computed is still in the object store, and stays at hand.
        """
        self._end(call.actor, call)
        if call.kind in ("assembler-ready", "absorb", "transpose"):
            return AssemblerLost(call.actor, cause)
        return WorkerLost(call.actor, cause)

    def _end(self, name: str, *asked: Call) -> None:
        """Kill an actor, and forget what was asked of it: `asked`, and what is still waited for."""
        calls = [*asked, *(call for call in self._calls.values() if call.actor == name)]
        self._calls = {ref: call for ref, call in self._calls.items() if call.actor != name}
        self._gathered.pop(name, None)
        for call in calls:
            for each in call.blocks if call.kind == "compute" else ():
                self._data.pop(each, None)
        if name in self._actors:
            ray.kill(self._actors.pop(name))
