"""A run whose coordinator is an actor; this process only watches."""

from __future__ import annotations

import hashlib

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jacjobs.errors import JacjobsError, WorkersError
from jacjobs.planning.planner import Plan
from jacjobs.run.cluster.actors import Payload
from jacjobs.run.cluster.causes import cause_of
from jacjobs.run.cluster.executor import RayExecutor
from jacjobs.run.cluster.metrics import RunMetrics
from jacjobs.run.cluster.session import Placement, check_servers
from jacjobs.run.coordinator import Coordinator, Progress, part_metadata
from jacjobs.store.folder import Manifest, RunRecord

ANSWER_SECONDS = 60.0


class CoordinatorActor:
    """Named after the run; asks for no CPU. Whoever watches may come and go."""

    def __init__(self, record: RunRecord, path: str, payload: Payload, placement: Placement) -> None:
        plan = Plan.model_validate(record.plan)
        self._coordinator = Coordinator(
            record,
            path,
            lambda: RayExecutor(payload, plan, path, part_metadata(record), placement.gpus_per_worker),
            workers=placement.workers,
            observer=RunMetrics(record.run, record.name),
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


class RayRun:
    """A run whose coordinator is an actor; this process only watches."""

    def __init__(self, record: RunRecord, path: str, payload: Payload, placement: Placement) -> None:
        where = hashlib.sha256(path.encode()).hexdigest()[:8]
        # Beside this process, without which it ends anyway: no other node that is lost takes it along. (A
        # soft affinity is none: Ray puts an actor that asks for no CPU on any node then.)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._coordinator = (
            ray.remote(CoordinatorActor)
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
            check_servers()
        try:
            result: Manifest | JacjobsError = ray.get(self._result, timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            raise WorkersError(
                f"the coordinator died ({cause_of(error)}); `jacjobs resume` goes on"
            ) from None
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
