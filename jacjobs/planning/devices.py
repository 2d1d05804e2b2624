"""What a device can do, as far as a plan needs to know: memory, and the rates that turn work into seconds.

The figures of GPUs are their makers' data sheets, of dense operation without sparsity and without TF32; those
of a CPU core were fitted to benchmarks/functions.py. They order strategies and give a first chunk and an ETA;
where the job is long enough to pay for it, chunks are timed on the device itself.
"""

from __future__ import annotations

import difflib
import re

from pydantic import BaseModel, ConfigDict

from jacjobs.cost import Work
from jacjobs.errors import InputError

GIB = 1 << 30


class Device(BaseModel):
    """Where products are made.

    memory_bytes:        all of it; of a host, what was available.
    host:                whether finished blocks take the same memory.
    process_bytes:       what a process takes beside tensors: libraries' buffers and the like.
    kept_bytes:          what the allocator keeps besides: as much again as is alive, up to so much.
    flops:               floating-point operations a second, by dtype.
    bandwidth:           bytes a second that operators read and write while the working set is in the cache,
    memory_bandwidth:    and while it is not.
    cache_bytes:         where the one becomes the other. (On a CPU it is as much the allocator as the cache:
                         what is larger comes fresh from the system, page by page.)
    call_seconds:        what an operator takes however small it is.
    chunk_seconds:       what a chunk takes beside its operators.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    memory_bytes: int
    host: bool = False
    process_bytes: int = 0
    kept_bytes: int = 0
    flops: dict[str, float]
    bandwidth: float
    memory_bandwidth: float
    cache_bytes: int
    call_seconds: float
    chunk_seconds: float

    def seconds(self, work: Work, dtype: str, working_set_bytes: int) -> float:
        """How long `work` takes while so many bytes are alive."""
        outside = min(1.0, max(0.0, 1 - self.cache_bytes / max(1, working_set_bytes)))
        a_byte = (1 - outside) / self.bandwidth + outside / self.memory_bandwidth
        return work.calls * self.call_seconds + work.flops / self.flops[dtype] + work.moved_bytes * a_byte


def cpu(memory_bytes: int, threads: int = 1) -> Device:
    """So many cores of a server's CPU."""
    return Device(
        name="cpu" if threads == 1 else f"cpu, {threads} threads",
        memory_bytes=memory_bytes,
        host=True,
        process_bytes=64 << 20,
        kept_bytes=160 << 20,
        flops={"float16": 5e9 * threads, "float32": 80e9 * threads, "float64": 20e9 * threads},
        bandwidth=12e9 * threads,
        memory_bandwidth=4e9 * min(threads, 4),
        cache_bytes=56 << 20,
        call_seconds=7e-6,
        chunk_seconds=150e-6,
    )


def _gpu(name: str, gib: int, half: float, single: float, double: float, terabytes: float) -> Device:
    """Rates in units of 1e12 a second."""
    return Device(
        name=name,
        memory_bytes=gib * GIB,
        flops={"float16": half * 1e12, "float32": single * 1e12, "float64": double * 1e12},
        bandwidth=terabytes * 1e12,
        memory_bandwidth=terabytes * 1e12,
        cache_bytes=40 << 20,
        call_seconds=8e-6,
        chunk_seconds=150e-6,
    )


KNOWN = {
    device.name: device
    for device in (
        _gpu("H200 141GB", 141, 989, 67, 67, 4.8),
        _gpu("H100 80GB", 80, 989, 67, 67, 3.35),
        _gpu("B200 180GB", 180, 2250, 75, 37, 7.7),
        _gpu("A100 80GB", 80, 312, 19.5, 19.5, 2.0),
        _gpu("A100 40GB", 40, 312, 19.5, 19.5, 1.55),
        _gpu("L40S 48GB", 48, 362, 91, 1.4, 0.86),
        _gpu("L4 24GB", 24, 121, 30, 0.5, 0.3),
        _gpu("V100 32GB", 32, 125, 15.7, 7.8, 0.9),
        _gpu("V100 16GB", 16, 125, 15.7, 7.8, 0.9),
        _gpu("T4 16GB", 16, 65, 8.1, 0.25, 0.32),
        _gpu("RTX 4090 24GB", 24, 165, 82, 1.3, 1.0),
        _gpu("RTX 3090 24GB", 24, 71, 35, 0.55, 0.94),
    )
}


def named(name: str) -> Device:
    """A GPU by name: `H100 80GB`, `h100`, or as CUDA reports it, `NVIDIA H100 80GB HBM3`.

    Raises InputError for one that is not known; `H100` and a memory of one's own go by `memory`.
    """
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    best, most = None, 0
    for known, device in KNOWN.items():
        own = re.findall(r"[a-z0-9]+", known.lower())
        common = len(words.intersection(own))
        if common > most and not set(own[:-1]) - words:
            best, most = device, common
    if best is None:
        near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.3)
        raise InputError.about(
            "device",
            got=repr(name),
            expected="one of " + ", ".join(KNOWN),
            do=f"did you mean {near[0]!r}?" if near else None,
        )
    return best


def reported(name: str, memory_bytes: int) -> Device:
    """A GPU as CUDA reports it; one that is not known is taken for an A100, until it is timed."""
    try:
        known = named(name)
    except InputError:
        known = KNOWN["A100 40GB"]
    return known.model_copy(update={"name": name, "memory_bytes": memory_bytes})
