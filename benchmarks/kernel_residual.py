"""The residual Jacobian that does not fit: `jacjobs.jacobian` within a budget, against what jacfwd would
take.

    python benchmarks/kernel_residual.py [--count 10000] [--bumps 1000] [--memory 1GiB]

`count` residuals of `bumps` + 1 parameters in float64: weights of Gaussian bumps, and their width. Compared
with the closed form. Prints the time and by how much the resident memory grew; `torch.func.jacfwd` in one go
would hold several tensors of count × bumps × (bumps + 1) entries, whose size is printed beside.
"""

from __future__ import annotations

import argparse
import threading
import time

import psutil
import torch
from torch import Tensor

import jacjobs

MIB = 1 << 20


class PeakMemory:
    """By how much the resident memory of this process grew, at most, sampled every 20 ms."""

    def __enter__(self) -> PeakMemory:
        self._process = psutil.Process()
        self._before = self._peak = self._process.memory_info().rss
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self._peak = max(self._peak, self._process.memory_info().rss)

    @property
    def grown_mib(self) -> int:
        return (self._peak - self._before) // MIB


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--bumps", type=int, default=1_000)
    parser.add_argument("--memory", default="1GiB")
    options = parser.parse_args()
    count, bumps = options.count, options.bumps

    points = torch.linspace(0, 1, count, dtype=torch.float64)
    squares = (points[:, None] - torch.linspace(0, 1, bumps, dtype=torch.float64)) ** 2

    def residual(theta: Tensor) -> Tensor:
        return torch.exp(-squares / theta[bumps] ** 2) @ theta[:bumps] - torch.sin(points)

    theta = torch.cat([torch.randn(bumps, dtype=torch.float64), torch.full((1,), 0.05, dtype=torch.float64)])
    with PeakMemory() as memory:
        started = time.perf_counter()
        J = jacjobs.jacobian(residual, memory=options.memory)(theta)
        seconds = time.perf_counter() - started
    values = torch.exp(-squares / theta[bumps] ** 2)
    width = (values * 2 * squares / theta[bumps] ** 3) @ theta[:bumps]
    torch.testing.assert_close(J, torch.cat([values, width[:, None]], 1))
    tangents = count * bumps * (bumps + 1) * 8 // MIB
    print("| J | budget | seconds | memory grew, MiB | of it J, MiB | one batch of all tangents, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {count:,} × {bumps + 1:,} float64 | {options.memory} | {seconds:.0f} | {memory.grown_mib:,} | "
        f"{J.nbytes // MIB:,} | {tangents:,} |"
    )


if __name__ == "__main__":
    main()
