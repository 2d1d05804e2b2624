"""What there is to compute with, here or on a device that is only named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from jacjobs.autodiff.device import GPU_SHARE, HOST, HOST_SHARE, available_bytes
from jacjobs.autodiff.meter import available_memory_bytes
from jacjobs.cost import parse_bytes
from jacjobs.errors import InputError
from jacjobs.planning.choice import Resources
from jacjobs.planning.devices import Device, cpu, named, reported
from jacjobs.planning.options import ClusterOptions, workers_on
from jacjobs.store.place import LocalFolder, place_of


def resources_here(
    cluster: ClusterOptions,
    memory: float | str | None,
    path: str | Path,
    workers: int | None = None,
    device: torch.device | None = None,
) -> Resources:
    """Of this process's machine: its GPU if there is one and the job may use it, else its cores.

    memory:   as in `ComputeOptions`. path: where the dataset goes. workers: how many there are, if it is
              known. device: the one that computes, if that is known.
    """
    count = local_workers(cluster) if workers is None else workers
    if device is None:
        device = torch.device("cuda", torch.cuda.current_device()) if uses_gpu(cluster) else HOST
    if device.type == "cuda":
        gpu = reported(torch.cuda.get_device_name(device), available_bytes(device))
        return _resources(gpu, count, _sharing(cluster), memory, path)
    host = cpu(available_memory_bytes(), cluster.cpus_per_worker)
    beside = max(1, len(os.sched_getaffinity(0)) // cluster.cpus_per_worker)
    return _resources(host, count, min(count, beside), memory, path)


def resources_named(
    name: str, cluster: ClusterOptions, memory: float | str | None, path: str | Path
) -> Resources:
    """Of so many GPUs of that name (`cluster.workers`, or one), whether they are here or not."""
    workers = 1 if cluster.workers == "auto" else cluster.workers
    return _resources(named(name), workers, _sharing(cluster), memory, path)


def check_budget(resources: Resources) -> None:
    """Raises InputError where a budget was asked for that is not there: to plan with it is fine, to run is
    not.
    """
    there = resources.device.memory_bytes // resources.sharing
    if resources.budget_bytes > there:
        raise InputError.about(
            "compute.memory",
            got=f"{resources.budget_bytes:,} bytes a worker",
            expected=f"at most the {there:,} that are free for each ({resources.device.name})",
            do="ask for less, or leave it out",
        )


def uses_gpu(cluster: ClusterOptions) -> bool:
    """The inline executor computes where the problem's tensors are: it is not asked here."""
    return torch.cuda.is_available() and cluster.gpus_per_worker != 0 and cluster.address != "inline"


def _sharing(cluster: ClusterOptions) -> int:
    """How many workers share a GPU's memory; of one that is only named, none may be asked for."""
    return max(1, workers_on(1, cluster.gpus_each(there=True) or 1))


def local_workers(cluster: ClusterOptions) -> int:
    """How many workers this machine gets."""
    if cluster.address == "inline":
        return 1
    if cluster.workers != "auto":
        return cluster.workers
    if uses_gpu(cluster):
        return workers_on(torch.cuda.device_count(), cluster.gpus_each(there=True))
    return max(1, len(os.sched_getaffinity(0)) // cluster.cpus_per_worker)


def _resources(
    device: Device, workers: int, sharing: int, memory: float | str | None, path: str | Path
) -> Resources:
    """`sharing` workers share the device's memory."""
    if isinstance(memory, str):
        budget = parse_bytes(memory)
        if budget is None:
            raise InputError.about("compute.memory", got=repr(memory), expected='bytes such as "8GiB"')
    else:
        share = memory or (HOST_SHARE if device.host else GPU_SHARE)
        budget = int(device.memory_bytes * share) // sharing
    return Resources(
        device=device,
        budget_bytes=budget,
        workers=workers,
        sharing=sharing,
        disk_free_bytes=_free_bytes(path),
    )


def _free_bytes(path: str | Path) -> int | None:
    """On the file system where `path` is, or will be; None where that has no size (/proc, some networks, an
    object store).
    """
    folder = place_of(path)
    if not isinstance(folder, LocalFolder):
        return None
    place = folder.path
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return None
    return usage.free if usage.total else None
