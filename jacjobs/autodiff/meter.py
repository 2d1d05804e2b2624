"""What a piece of torch code takes: storages followed from birth to death, operators counted, memory
measured.

`Meter` sees every operator, on real tensors or on fake ones: under `FakeTensorMode` nothing is allocated and
no device is needed. It does not see what an operator allocates and frees inside itself, nor what was there
before. `AllocatedPeak` asks the allocator instead, which sees all of it and needs the device. `ResidentPeak`
asks the kernel.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.autograd import profiler
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from jacjobs.cost import Work

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks on standard error at each start and stop


class Meter(TorchDispatchMode):
    """Bytes of the storages made while it is active, `live` now and the `peak`; the operators' `work`.

    It follows real storages, or, with `fakes`, those that fake tensors pretend to have. Floating-point
    operations are counted by torch's own formulas (`torch.utils.flop_counter`); an operator without one
    counts none, and shows in the bytes it moves. Views move nothing.
    """

    def __init__(self, *, fakes: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fakes = fakes
        self.live = 0
        self.peak = 0
        self._calls = 0
        self._flops = 0
        self._moved_bytes = 0
        self._known: dict[int, Any] = {}

    @property
    def work(self) -> Work:
        """Since the beginning."""
        return Work(calls=self._calls, flops=self._flops, moved_bytes=self._moved_bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else (result,)
        writes = False
        for value, returned in zip(results, func._schema.returns, strict=False):
            # A view is no birth, not even that of what was captured and only now became a fake tensor.
            if returned.alias_info is not None and not returned.alias_info.is_write:
                continue
            for leaf in (value,) if isinstance(value, Tensor) else pytree.tree_leaves(value):
                if isinstance(leaf, Tensor):
                    writes = True
                    self._moved_bytes += leaf.numel() * leaf.element_size()
                    if returned.alias_info is None:
                        self._born(leaf)
        if writes:
            self._count(func, args, kwargs or {}, result)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self._calls += 1
        for leaf in pytree.arg_tree_leaves(*args, **kwargs):
            if isinstance(leaf, Tensor):
                self._moved_bytes += leaf.numel() * leaf.element_size()
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self._flops += int(formula(*args, **kwargs, out_val=result))

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        pretended = storage.device.type == "meta"
        if key in self._known or pretended != self._fakes or tensor.is_meta:
            return
        size = storage.nbytes()
        self._known[key] = weakref.finalize(storage, self._died, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _died(self, key: int, size: int) -> None:
        del self._known[key]
        self.live -= size


class AllocatedPeak:
    """By how many bytes torch's allocator grew, at most, while the block ran: `with AllocatedPeak(device) as
    p:`.

    On CUDA the allocator keeps count; on a CPU the profiler's memory events tell, which slows operators down.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self._profile: Any = None
        self._before = 0
        self.nbytes = 0

    def __enter__(self) -> AllocatedPeak:
        if self._device is not None:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            # torch.profiler's own class imports half of torch on first use, for two seconds.
            self._profile = profiler.profile(use_kineto=True, profile_memory=True)
            self._profile.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._device is not None:
            torch.cuda.synchronize(self._device)
            self.nbytes = torch.cuda.max_memory_allocated(self._device) - self._before
            return
        self._profile.__exit__(*exception)
        live = 0
        for event in self._profile.kineto_results.events():
            if event.name() == "[memory]":
                live += event.nbytes()
                self.nbytes = max(self.nbytes, live)


class ResidentPeak:
    """By how many bytes the memory of this process grew, at most, while the block ran: the kernel's
    high-water mark.

    Linux only: `nbytes` stays None where the mark cannot be reset. It sees what the allocator keeps and what
    libraries allocate past torch; memory that was touched and freed before, and kept by the process, is not
    seen.
    """

    def __init__(self) -> None:
        self.nbytes: int | None = None
        self._before: int | None = None

    def __enter__(self) -> ResidentPeak:
        try:
            # https://docs.kernel.org/filesystems/proc.html: 5 resets the peak to what is resident now.
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._before = _status_bytes("VmRSS")
        except OSError:
            self._before = None
        return self

    def __exit__(self, *exception: Any) -> None:
        peak = _status_bytes("VmHWM") if self._before is not None else None
        if peak is not None and self._before is not None:
            self.nbytes = max(0, peak - self._before)


def worker_peak(device: torch.device) -> AllocatedPeak | ResidentPeak:
    """What is cheap enough for every block: the allocator's count on CUDA, the kernel's mark on a host."""
    return AllocatedPeak(device) if device.type == "cuda" else ResidentPeak()


def available_memory_bytes() -> int:
    """What this process may still take of the host's memory: a container's limit counts."""
    free = [psutil.virtual_memory().available]
    for limit, used in _CGROUP_FILES:
        try:
            left = int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
        free.append(left)
    return max(0, min(free))


_CGROUP_FILES = [
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
]
"""Version 2 and version 1, as a container sees them."""


def _status_bytes(key: str) -> int | None:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
