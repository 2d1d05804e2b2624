"""Where products are computed: waiting for it, and what memory it has left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from jacjobs.autodiff.meter import available_memory_bytes
from jacjobs.problem import Problem

HOST = torch.device("cpu")


def device_of(problem: Problem) -> torch.device:
    device: torch.device = problem.leaves[problem.wanted[0]].device
    return device


def wait_for(device: torch.device) -> None:
    """Until the products that it was told to make are made. A GPU takes orders, and goes on by itself."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def available_bytes(device: torch.device) -> int:
    """What this process may still take of a device's memory, what its allocator keeps for later included."""
    if device.type != "cuda":
        return available_memory_bytes()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def give_back() -> None:
    """Hand what torch's allocator keeps of GPUs' memory back, so that it can be had in other pieces."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def tf32(allowed: bool | None) -> Iterator[None]:
    """Within it, torch may round the factors of float32 products on GPUs to TF32, which has ten bits, or may
    not; None: as it is set. By default it may where it convolves.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
    """
    if allowed is None:
        yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
