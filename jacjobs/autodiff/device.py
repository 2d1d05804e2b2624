"""Where products are computed: waiting for it, and what memory it has left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import numpy as np
import torch

from jacjobs.autodiff.meter import available_memory_bytes
from jacjobs.precision import may_use_tf32
from jacjobs.problem import ALONE, Problem

HOST = torch.device("cpu")
HOST_SHARE, GPU_SHARE = 0.5, 0.9
"""Of the memory that is free, unless told otherwise: a host has more to do, and holds blocks on their way."""

SMALL_BYTES, ROOM_BYTES = 4 << 20, 8 << 20
"""A J for which room is kept, and the largest blocks in it."""


def device_of(problem: Problem) -> torch.device:
    device: torch.device = problem.leaves[problem.wanted[0]].device
    return device


def wait_for(device: torch.device) -> None:
    """Until the products that it was told to make are made. A GPU takes orders, and goes on by itself."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """For copies that go on beside the products of a GPU: one, since memory is kept for each."""
    return torch.cuda.Stream(device)


def available_bytes(device: torch.device) -> int:
    """What this process may still take of a device's memory, what its allocator keeps for later included."""
    if device.type != "cuda":
        return available_memory_bytes()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def keep_room(size_bytes: int, device: torch.device) -> None:
    """Where J is small, have the C library keep what a call took for the next one, in blocks up to 8 MiB.

    Pages that come from the system afresh take as long to fill as a small J takes to compute. glibc maps
    blocks anew that are larger than the largest one that ever went back to the system, and gives the top of
    its heap back from twice as much on. Here a larger one goes back, which is not touched. What lies between
    others stays as well, so that two to three times what was alive may: a large J is left alone.
    https://man7.org/linux/man-pages/man3/mallopt.3.html (M_MMAP_THRESHOLD), docs/decisions/0042
    """
    if device.type == "cpu" and size_bytes <= SMALL_BYTES:
        with suppress(MemoryError):
            np.empty(ROOM_BYTES, np.uint8)


def give_back() -> None:
    """Hand what torch's allocator keeps of GPUs' memory back, so that it can be had in other pieces."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def tf32_as_wished(problem: Problem) -> Iterator[None]:
    """Within it, torch rounds the factors of float32 products on GPUs to TF32, which has ten bits, or does
    not, as the problem says. By default it does so where it convolves.

    One thread at a time: torch has one setting for all.
    """
    allowed = problem.tf32
    if allowed is None or device_of(problem).type != "cuda":
        yield
        return
    settings = may_use_tf32(convolves=True)
    with ALONE:
        before = [setting.fp32_precision for setting in settings]
        older = _older_setting()
        if allowed and older is not None:  # torch's compiler asks for this one, and wants both to agree
            torch.set_float32_matmul_precision("high")
        for setting in settings:
            setting.fp32_precision = "tf32" if allowed else "ieee"
        try:
            yield
        finally:
            if allowed and older is not None:
                torch.set_float32_matmul_precision(older)
            for setting, precision in zip(settings, before, strict=True):
                setting.fp32_precision = precision


def _older_setting() -> str | None:
    """None where the user has set the newer one otherwise: then torch refuses to say."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
