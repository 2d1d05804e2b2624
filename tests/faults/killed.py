"""A run that a test kills: `python -m tests.faults.killed PATH ADDRESS [naive]`.

naive: the commit protocol's rename is replaced by writing straight to the final name.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

import jacjobs

ROWS, COLUMNS, POINTS = 1024, 4096, 8
BYTES = 4 * ROWS * COLUMNS * POINTS
"""128 MiB in four parts of 32 MiB, and 64 blocks."""


def problem() -> jacjobs.Problem:
    X = torch.linspace(0, 1, POINTS * COLUMNS).reshape(POINTS, COLUMNS)

    def fn(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.005)
        return torch.tanh(x.reshape(-1, ROWS)).sum(0)

    return jacjobs.Problem(fn, (X,), in_dims=0)


def submit(path: Path, address: str, workers: int | str = "auto") -> jacjobs.Run:
    return jacjobs.submit(
        problem(), path, strategy="vjp/vmap", chunk=128, compression="none", address=address, workers=workers
    )


def write_straight_to_the_final_name() -> None:
    from jacjobs.store.commit import LocalFile, PendingFile

    def open_final(self: LocalFile, final: Path, scratch: Path, *, cached: bool) -> None:
        self._final = self._path = final
        PendingFile.__init__(self, final.open("w+b"))

    LocalFile.__init__ = open_final  # type: ignore[method-assign]
    LocalFile._publish = lambda self: self._file.close()  # type: ignore[method-assign]
    LocalFile.discard = lambda self: self._file.close()  # type: ignore[method-assign]


if __name__ == "__main__":
    if "naive" in sys.argv:
        write_straight_to_the_final_name()
    submit(Path(sys.argv[1]), sys.argv[2]).wait()
