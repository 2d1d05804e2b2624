"""A tuner on a worker's device: what the device is, and how fast chunks are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from jacjobs.errors import WorkersError
from jacjobs.planning.choice import Chooser, Resources, Timing
from jacjobs.planning.options import ClusterOptions
from jacjobs.run.cluster.actors import Payload, worker_options
from jacjobs.run.cluster.causes import cause_of
from jacjobs.run.cluster.session import Placement

TUNE_TIMEOUT_SECONDS = 1200.0
"""For a worker to start, on a cluster that may have to start a node and install torch there, and to time
chunks."""


class TunerActor:
    """A worker that never gets a block: it says what its device is, and times chunks there."""

    def __init__(self, payload: Payload, cluster: ClusterOptions, workers: int) -> None:
        import torch

        from jacjobs.run.tuner import Tuner

        self._cluster, self._workers = cluster, workers
        # A GPU that torch cannot use here is none: then the plan is made for the host.
        on = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        self._tuner = Tuner(payload.unpack(), cluster.cpus_per_worker, on)

    def resources(self, memory: float | str | None, path: str) -> Resources:
        from jacjobs.run.resources import resources_here

        return resources_here(self._cluster, memory, path, self._workers)

    def tune(self, chooser: Chooser, limit_seconds: float) -> list[Timing]:
        return self._tuner.tune(chooser, limit_seconds)


class RemoteTuner:
    """A tuner on a worker's device, started when first asked."""

    def __init__(self, payload: Payload, cluster: ClusterOptions, placement: Placement) -> None:
        self._arguments = payload, cluster, placement.workers
        self._options = worker_options(cluster.cpus_per_worker, placement.gpus_per_worker)
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
            self._actor = ray.remote(TunerActor).options(**self._options).remote(*self._arguments)
        try:
            return ray.get(getattr(self._actor, method).remote(*arguments), timeout=TUNE_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            raise WorkersError(f"the worker that was to time chunks is gone: {cause_of(error)}") from None


@contextmanager
def worker_tuner(payload: Payload, cluster: ClusterOptions, placement: Placement) -> Iterator[RemoteTuner]:
    tuner = RemoteTuner(payload, cluster, placement)
    try:
        yield tuner
    finally:
        tuner.close()
