"""A Ray to work in, and how many workers fit it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import ray

from jacjobs.errors import InputError, WorkersError
from jacjobs.planning.options import ClusterOptions, workers_on
from jacjobs.run.address import check_address, unreachable
from jacjobs.run.cluster.causes import cause_of
from jacjobs.run.roster import IN_FLIGHT

SMALLEST_STORE_BYTES = 128 << 20
WORKERS_AN_ASSEMBLER = 8
"""What one can write for: docs/decisions/0026."""


def joins(options: ClusterOptions) -> bool:
    """Is there a Ray that this process is in already, and that does?"""
    return bool(ray.is_initialized()) and options.address in ("local", "auto")


@contextmanager
def session(options: ClusterOptions, block_bytes: int) -> Iterator[None]:
    """A Ray to work in: the one this process is already in, an existing cluster, or an embedded one.

    Only what was started here is shut down. Raises InputError where the address leads nowhere.
    """
    if joins(options):
        yield
        return
    try:
        if options.address == "local":
            # It needs torch, which a coordinator, for whom this module is loaded too, has no use for.
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
            check_address(options.address)
            ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise unreachable(options.address, cause_of(error)) from None
    if options.address == "local":
        _SERVERS.extend(child for child in psutil.Process().children() if child.name() in SERVERS)
    try:
        yield
    finally:
        _SERVERS.clear()
        gc.collect()  # handles of actors lie in cycles: those of this Ray must not outlive it
        ray.shutdown()


SERVERS = ("gcs_server", "raylet")
_SERVERS: list[psutil.Process] = []
"""Those of the embedded Ray, as long as there is one."""


def check_servers() -> None:
    """Raises WorkersError if the embedded Ray is broken. Ray itself would notice after a quarter of a minute,
    or end this process after a whole one.
    """
    for server in _SERVERS:
        if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE:
            raise WorkersError(
                f"the Ray that this process started is gone ({server.name()} was killed, or crashed); "
                "`jacjobs resume` goes on"
            )


@dataclass(frozen=True)
class Placement:
    """How many workers, and what each asks for.

    follow:  whether there may be more and fewer of them as the cluster grows and shrinks.
    """

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    follow: bool = False

    @property
    def assemblers(self) -> int:
        """As many as can write what the workers compute."""
        return -(-self.workers // WORKERS_AN_ASSEMBLER)

    def now(self) -> int:
        """How many workers the cluster has room for, or may make room for."""
        return room(self.cpus_per_worker, self.gpus_per_worker)


def place(options: ClusterOptions) -> Placement:
    """Fit the workers to the cluster this process is connected to; refuse what it does not have.

    Where nodes come when they are asked for, a number of workers is taken at its word, and the run waits for
    them.
    """
    there, coming, grows = ray.cluster_resources(), _limits(), _grows()
    if grows and not coming and not there.get("CPU") and options.gpus_per_worker == "auto":
        raise InputError.about(
            "cluster.gpus_per_worker",
            got="auto",
            expected="a number: the cluster starts nodes when they are asked for, and has none now",
            do="--set cluster.gpus_per_worker=1 asks for nodes with GPUs; cluster.workers says how many",
        )
    gpus = options.gpus_each(there=bool(there.get("GPU") or coming.get("GPU")))
    fit = room(options.cpus_per_worker, gpus)
    workers = fit if options.workers == "auto" else options.workers
    if workers < 1 or (workers > fit and not grows):
        raise InputError.about(
            "cluster.workers",
            got=f"{options.workers} (with {options.cpus_per_worker} CPUs and {gpus:g} GPUs each)",
            expected=f"at most {fit}: the cluster has {int(there.get('CPU', 0))} CPUs and "
            f"{int(there.get('GPU', 0))} GPUs",
            do="ask for fewer workers or smaller ones",
        )
    follow = options.workers == "auto" and options.address != "local"
    return Placement(workers, options.cpus_per_worker, gpus, follow)


def room(cpus: int, gpus: float) -> int:
    """For how many workers: node by node, since none spans two. Where nodes come when they are asked for: as
    many as the cluster says that it may grow to, or else twice those that there are. Who waits is the asking.
    """
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    fit = sum(_fit(node, cpus, gpus) for node in nodes)
    limits = _limits()
    if limits:
        return max(fit, _fit(limits, cpus, gpus))
    return max(1, 2 * fit) if _grows() else fit


def _fit(there: dict[str, float], cpus: int, gpus: float) -> int:
    fit = int(there.get("CPU", 0) / cpus)
    return min(fit, workers_on(there.get("GPU", 0), gpus)) if gpus else fit


def _limits() -> dict[str, float]:
    """What a cluster that scales by itself may grow to, where it says so (not those of `ray up`). Ray's own
    libraries ask the same; it is no public name.
    """
    with suppress(Exception):
        return dict(ray._private.state.state.get_max_resources_from_cluster_config() or {})
    return {}


def _grows() -> bool:
    """Does an autoscaler of `ray up` or of KubeRay start nodes? The one that they have by default says so."""
    from ray.experimental.internal_kv import _internal_kv_get  # works by ray:// too

    return bool(_internal_kv_get("__autoscaler_v2_enabled", namespace="__autoscaler") == b"1")
