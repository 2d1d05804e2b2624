"""A Ray to work in, and how many workers fit it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import ray

from jacjobs.errors import InputError, WorkersError
from jacjobs.planning.options import ClusterOptions
from jacjobs.run.cluster.causes import cause_of
from jacjobs.run.roster import IN_FLIGHT

CONNECT_TIMEOUT_SECONDS = 5.0
SMALLEST_STORE_BYTES = 128 << 20


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
            got=f"{options.address!r} ({cause_of(error)})",
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


def _knock(address: str) -> None:
    """Ray waits for minutes at a door behind which nobody is; a connection tells at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()


@dataclass(frozen=True)
class Placement:
    """How many workers, and what each asks for."""

    workers: int
    gpus_per_worker: int


def place(options: ClusterOptions) -> Placement:
    """Fit the workers to the cluster this process is connected to; refuse what it does not have.

    Where nodes come when they are asked for, nobody knows what it could have: a number of workers is taken at
    its word, and the run waits for them.
    """
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    grows = _grows()
    if grows and not cpus and "auto" in (options.workers, options.gpus_per_worker):
        raise InputError.about(
            "cluster.workers, cluster.gpus_per_worker",
            got=f"{options.workers}, {options.gpus_per_worker}",
            expected="numbers: the cluster starts nodes when they are asked for, and has none now",
            do="--set cluster.workers=4 --set cluster.gpus_per_worker=1 asks for four, with a GPU each",
        )
    each = int(gpus > 0) if options.gpus_per_worker == "auto" else options.gpus_per_worker
    fit = cpus // options.cpus_per_worker
    if each:
        fit = min(fit, gpus // each)
    workers = fit if options.workers == "auto" else options.workers
    if workers < 1 or (workers > fit and not grows):
        raise InputError.about(
            "cluster.workers",
            got=f"{options.workers} (with {options.cpus_per_worker} CPUs and {each} GPUs each)",
            expected=f"at most {fit}: the cluster has {cpus} CPUs and {gpus} GPUs",
            do="ask for fewer workers or smaller ones",
        )
    return Placement(workers, each)


def _grows() -> bool:
    """Does an autoscaler of `ray up` or of KubeRay start nodes? The one that they have by default says so."""
    from ray.experimental.internal_kv import _internal_kv_get  # works by ray:// too

    return bool(_internal_kv_get("__autoscaler_v2_enabled", namespace="__autoscaler") == b"1")
