"""The inline executor: one worker and one assembler in this process, one thing after another.

For debugging (a breakpoint in the user's function works) and for machines without Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jacjobs.autodiff.device import device_of
from jacjobs.errors import JacjobsError
from jacjobs.planning.planner import Plan
from jacjobs.problem import Problem
from jacjobs.run.assembler import Assembler, BundleAssembler
from jacjobs.run.messages import (
    Abandon,
    Absorb,
    AssemblerJoined,
    BlockAbsorbed,
    BlockComputed,
    BlockId,
    BlockRaised,
    Command,
    Compute,
    Drop,
    Event,
    Kill,
    Ping,
    StartAssembler,
    StartWorker,
    Sweep,
    Transpose,
    Transposed,
    WorkerJoined,
    WriteFailed,
)
from jacjobs.run.sparse_assembler import SparseAssembler
from jacjobs.run.sparse_worker import SparseWorker
from jacjobs.run.worker import BlockWorker, Worker
from jacjobs.store.folder import RunFolder
from jacjobs.structure.coloured import Coloured

NAME = "inline"


class InlineExecutor:
    def __init__(self, problem: Problem, plan: Plan, path: str | Path, metadata: dict[str, str]) -> None:
        self._threads_before = torch.get_num_threads()
        self._worker: BlockWorker
        self._assembler: BundleAssembler
        device = str(device_of(problem))
        if plan.groups is None:
            self._worker, self._assembler = Worker(problem, plan, device), Assembler(path, plan, metadata)
        else:
            coloured = Coloured.of_arrays(RunFolder(path).pattern(plan.pattern))
            self._worker = SparseWorker(problem, plan, coloured, device)
            self._assembler = SparseAssembler(path, plan, metadata, coloured)
        self._commands: deque[Command] = deque()
        self._data: dict[BlockId, NDArray[np.generic]] = {}

    def execute(self, commands: Sequence[Command]) -> None:
        self._commands.extend(commands)

    def poll(self, timeout_seconds: float) -> Iterable[Event]:
        while self._commands:
            event = self._carry_out(self._commands.popleft())
            if event is not None:
                return [event]
        return []

    def close(self) -> None:
        self._commands.clear()
        self._data.clear()
        self._assembler.close()
        torch.set_num_threads(self._threads_before)

    def _carry_out(self, command: Command) -> Event | None:
        match command:
            case StartWorker():
                return WorkerJoined(NAME)
            case StartAssembler():
                return AssemblerJoined(NAME)
            case Compute(worker, block):
                try:
                    computed = self._worker.compute(block)
                except JacjobsError as error:
                    return BlockRaised(block, error)
                self._data[block] = computed.values
                return BlockComputed(worker, block, computed.findings)
            case Absorb(assembler, block):
                try:
                    committed = self._assembler.absorb(block, self._data.pop(block))
                except JacjobsError as error:
                    return WriteFailed(error)
                return BlockAbsorbed(assembler, block, committed)
            case Kill() | Ping():  # it would be this process; its user can interrupt it
                pass
            case Drop(block):
                self._data.pop(block, None)
            case Abandon(_, bundle):
                self._assembler.abandon(bundle)
            case Transpose(assembler, part):
                try:
                    return Transposed(assembler, part, self._assembler.transpose(part))
                except JacjobsError as error:
                    return WriteFailed(error)
            case Sweep(_, point):
                self._assembler.sweep(point)
        return None
