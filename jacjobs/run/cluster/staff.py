"""Workers that are there before the plan: they say what their device is, time chunks on it, and then compute.

A worker's process takes seconds to start. What is made meanwhile, and by whom, is in docs/decisions/0027.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from jacjobs.errors import WorkersError
from jacjobs.planning.choice import Chooser, Resources, Timing
from jacjobs.planning.options import ClusterOptions
from jacjobs.run.cluster.actors import Payload, start_worker
from jacjobs.run.cluster.causes import cause_of
from jacjobs.run.cluster.session import Placement

ANSWER_SECONDS = 1200.0
"""For a worker to start, on a cluster that may have to start a node and install torch there, and to time
chunks."""


class Staff:
    """Workers of this process. A run that takes them over ends them."""

    def __init__(self, payload: Payload, cluster: ClusterOptions, placement: Placement) -> None:
        self._payload = ray.put(payload)
        self._cluster, self._most = cluster, placement.workers
        self._gpus = placement.gpus_per_worker
        self.workers: list[Any] = []

    def engage(self, count: int) -> None:
        """Have at least so many, or as many as the run may have; they start meanwhile."""
        while len(self.workers) < min(count, self._most):
            self.workers.append(start_worker(self._payload, self._cluster.cpus_per_worker, self._gpus))

    def resources(self, memory: float | str | None, path: str) -> Resources:
        """Of a worker's device, and the disk that it sees at `path`."""
        resources: Resources = self._ask("resources", self._cluster, memory, path, self._most)
        return resources

    def tune(self, trace: bytes, chooser: Chooser, limit_seconds: float) -> list[Timing]:
        """Nothing, where that fails: the plan as it is predicted has to do, and its workers will say why."""
        try:
            timings: list[Timing] = self._ask(
                "tune", self._cluster.cpus_per_worker, chooser, limit_seconds, trace
            )
        except WorkersError:
            return []
        return timings

    def dismiss(self) -> None:
        while self.workers:
            ray.kill(self.workers.pop())

    def _ask(self, method: str, *arguments: Any) -> Any:
        self.engage(1)
        try:
            return ray.get(getattr(self.workers[0], method).remote(*arguments), timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            ray.kill(self.workers.pop(0))
            raise WorkersError(f"the worker that was to time chunks is gone: {cause_of(error)}") from None


@contextmanager
def staff(payload: Payload, cluster: ClusterOptions, placement: Placement) -> Iterator[Staff]:
    """Dismissed where what follows fails."""
    engaged = Staff(payload, cluster, placement)
    try:
        yield engaged
    except BaseException:
        engaged.dismiss()
        raise
