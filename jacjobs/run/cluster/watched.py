"""A run whose coordinator is an actor; those who watch it may come and go."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jacjobs.errors import InputError, JacjobsError, RunHeldError, WorkersError
from jacjobs.planning.planner import Plan
from jacjobs.run.cluster.actors import Payload
from jacjobs.run.cluster.causes import cause_of
from jacjobs.run.cluster.executor import RayExecutor
from jacjobs.run.cluster.metrics import RunMetrics
from jacjobs.run.cluster.session import Placement, check_servers
from jacjobs.run.coordinator import Coordinator, Progress, part_metadata
from jacjobs.run.lookout import Lookout
from jacjobs.store.folder import Manifest, RunRecord
from jacjobs.store.lock import PATIENCE_SECONDS

ANSWER_SECONDS = 60.0
LOOK_SECONDS = 0.2
NAMESPACE = "jacjobs"
"""Of the coordinators' names: any job of the cluster finds them."""


class CoordinatorActor:
    """Named after the run; asks for no CPU."""

    def __init__(
        self, record: RunRecord, path: str, payload: Payload, placement: Placement, engaged: Sequence[Any]
    ) -> None:
        plan = Plan.model_validate(record.plan)
        self._coordinator = Coordinator(
            record,
            path,
            lambda: RayExecutor(payload, plan, path, part_metadata(record), placement, engaged),
            workers=placement.workers,
            assemblers=placement.assemblers,
            observer=RunMetrics(record.run, record.name),
        )
        self._path = path
        self._outcome: Manifest | JacjobsError | None = None

    def run(self) -> Manifest | JacjobsError:
        try:
            self._outcome = self._coordinator.run()
        except JacjobsError as error:
            self._outcome = error
        return self._outcome

    def outcome(self) -> Manifest | JacjobsError | None:
        """How it ended; None while it goes on."""
        return self._outcome

    def path(self) -> str:
        return self._path

    def progress(self) -> Progress:
        return self._coordinator.progress()

    def stop(self) -> None:
        self._coordinator.stop()


class RayRun:
    """A run that this process submits, and that ends with it."""

    look_seconds = LOOK_SECONDS

    def __init__(
        self,
        record: RunRecord,
        path: str,
        payload: Payload,
        placement: Placement,
        engaged: Sequence[Any],
    ) -> None:
        """engaged: workers of this process, for the run to take over."""
        # Beside this process, without which it ends anyway: no other node that is lost takes it along. (A
        # soft affinity is none: Ray puts an actor that asks for no CPU on any node then.)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        name = _name(record, path)
        actor = ray.remote(CoordinatorActor).options(
            num_cpus=0,
            max_restarts=0,
            max_concurrency=8,
            name=name,
            namespace=NAMESPACE,
            scheduling_strategy=here,
        )
        give_up = time.monotonic() + PATIENCE_SECONDS
        self._coordinator: Any = None
        while True:
            try:
                self._coordinator = actor.remote(record, path, payload, placement, engaged)
                break
            except ValueError:  # there is one of that name
                _make_way(name, path, give_up)
        self._engaged = list(engaged)
        self._result: Any = self._coordinator.run.remote()

    def start(self) -> None:
        """It has begun."""

    def done(self) -> bool:
        return self._result is None or bool(ray.wait([self._result], timeout=0)[0])

    def result(self) -> Manifest:
        """Wait for the end. Raises what `Coordinator.run` raises."""
        while not ray.wait([self._result], timeout=LOOK_SECONDS)[0]:
            check_servers()
        try:
            result: Manifest | JacjobsError = ray.get(self._result, timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            raise WorkersError(
                f"the coordinator died ({cause_of(error)}); `jacjobs resume` goes on"
            ) from None
        finally:
            for actor in (self._coordinator, *self._engaged):  # a coordinator that was killed killed nobody
                ray.kill(actor)
            # A handle that outlives its Ray takes along an actor of the next one that has the same number.
            self._coordinator = self._result = None
            self._engaged.clear()
        if isinstance(result, JacjobsError):
            raise result
        return result

    def progress(self) -> Progress | None:
        """None while the coordinator does not answer: before it is up, and after it is gone."""
        coordinator = self._coordinator
        return None if coordinator is None else _asked(coordinator.progress)

    def stop(self) -> None:
        if (coordinator := self._coordinator) is not None:
            coordinator.stop.remote()


class AttachedRun:
    """A run that another process of this cluster has submitted. When its coordinator is gone, its folder says
    how it ended.
    """

    look_seconds = LOOK_SECONDS

    def __init__(self, coordinator: ActorHandle, path: str) -> None:
        self._coordinator = coordinator
        self._folder = Lookout(path)

    def start(self) -> None:
        """It has begun."""

    def done(self) -> bool:
        return self._outcome() is not None or (self._gone() and self._folder.done())

    def result(self) -> Manifest:
        while (outcome := self._outcome()) is None:
            if self._gone():
                return self._folder.result()
            time.sleep(LOOK_SECONDS)
        if isinstance(outcome, JacjobsError):
            raise outcome
        return outcome

    def progress(self) -> Progress | None:
        progress: Progress | None = _asked(self._coordinator.progress)
        return progress

    def stop(self) -> None:
        self._coordinator.stop.remote()

    def _outcome(self) -> Manifest | JacjobsError | None:
        outcome: Manifest | JacjobsError | None = _asked(self._coordinator.outcome)
        return outcome

    def _gone(self) -> bool:
        try:
            ray.get(self._coordinator.path.remote(), timeout=ANSWER_SECONDS)
        except ray.exceptions.GetTimeoutError:
            return False
        except ray.exceptions.RayError:
            return True
        return False


def running(record: RunRecord, path: str) -> AttachedRun | Lookout:
    """Whoever knows most of the run: its coordinator if this Ray has it, else its folder."""
    try:
        return AttachedRun(ray.get_actor(_name(record, path), NAMESPACE), path)
    except ValueError:
        return Lookout(path)


def path_of(name: str) -> str:
    """Of the run of this name that goes on in this Ray. Raises InputError where there is not exactly one."""
    every = [
        one["name"]
        for one in ray.util.list_named_actors(all_namespaces=True)
        if one["namespace"] == NAMESPACE
    ]
    found = [one for one in every if one.rpartition(":")[0] == name]
    if len(found) != 1:
        names = ", ".join(dict.fromkeys(one.rpartition(":")[0] for one in every)) or "none"
        raise InputError.about(
            f"run {name!r}",
            got="several runs of that name" if found else "no run of that name or at that path",
            expected=f"one of those in this Ray: {names}",
            do="give the path of its folder",
        )
    path: str = ray.get(ray.get_actor(found[0], NAMESPACE).path.remote(), timeout=ANSWER_SECONDS)
    return path


def _make_way(name: str, path: str, give_up: float) -> None:
    """Before the same run is begun once more: its coordinator may have ended, and not be gone yet.

    Raises RunHeldError if it goes on, and it is time to give up.
    """
    try:
        there = ray.get_actor(name, NAMESPACE)
    except ValueError:
        return
    if _asked(there.outcome) is not None:
        ray.kill(there)
    elif time.monotonic() > give_up:
        raise RunHeldError.about(
            f"run {path}",
            got="a run in progress, in this Ray",
            expected="one writer at a time",
            do="wait for it (`jacjobs.attach` finds it), or stop it first",
        )
    time.sleep(LOOK_SECONDS)


def _name(record: RunRecord, path: str) -> str:
    """Of a run's coordinator: a cluster has one for each run and place."""
    return f"{record.name}:{record.run}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def _asked(method: Any) -> Any:
    """What the coordinator says; None where it does not answer."""
    try:
        return ray.get(method.remote(), timeout=5.0)
    except ray.exceptions.RayError:
        return None
