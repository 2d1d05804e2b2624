"""A run, as those see it who submitted it or look on: wait for it, watch it, stop it, take what is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

from jacjobs.errors import JacjobsError
from jacjobs.planning.planner import Plan
from jacjobs.run import bar
from jacjobs.run.coordinator import Progress
from jacjobs.shape import Rectangle
from jacjobs.store.folder import Manifest, RunFolder, RunRecord
from jacjobs.store.reader import JacobianDataset, open_run
from jacjobs.store.schema import part_name

LIST_SECONDS = 1.0
"""How often new parts are looked for."""


class FinishedBlock(NamedTuple):
    """A piece of J that is committed.

    rectangle:  which points, rows and columns.
    values:     `J[rectangle.slices]`: (points, rows, columns), at most a block's bytes; of a sparse J, which
                comes point by point, a list of one csr_array.
    """

    rectangle: Rectangle
    values: Any


class _Unseen:
    """What of J was not given to an iterator yet."""

    def __init__(self, path: str, plan: Plan) -> None:
        self._folder, self._plan = RunFolder(path), plan
        self.left = {part_name(plan.tiling.part(i)): i for i in range(plan.tiling.parts)}
        """Parts, by their names."""
        self._J: JacobianDataset | None = None

    def fresh(self) -> list[Rectangle]:
        """What is committed of it; given once."""
        names = [name for name in self._folder.part_names() if name in self.left]
        self._J = open_run(self._folder.uri) if names else None
        return [piece for name in names for piece in self._plan.pieces(self.left.pop(name))]

    def read(self, rectangle: Rectangle) -> FinishedBlock:
        """One that `fresh` has just given."""
        assert self._J is not None
        return FinishedBlock(rectangle, self._J[rectangle.slices])


class Running(Protocol):
    """What carries a run out, or knows who does."""

    look_seconds: float
    """How often it is worth asking whether it is done."""

    def start(self) -> None:
        """Go on in the background, if it does not already."""

    def done(self) -> bool:
        """Has it ended, well or not?"""

    def result(self) -> Manifest:
        """Wait for the end. Raises what `Run.wait` raises."""

    def progress(self) -> Progress | None: ...

    def stop(self) -> None: ...


class Run:
    """A run that was submitted, or that `jacjobs.attach` found.

    >>> run = jacjobs.submit(problem, "runs/example")
    >>> for rectangle, values in run:      # as they are committed
    ...     ...
    >>> J = run.result()                   # or `J = await run`

    It can be pickled: in another process it finds the same run, by the Ray that both are in or by its folder.
    """

    def __init__(
        self,
        path: str,
        record: RunRecord,
        running: Running,
        attach: Callable[[str], Run],
        session: AbstractContextManager[None] | None = None,
    ) -> None:
        """session: what is left when the run has ended."""
        self.path = path
        self.plan = Plan.model_validate(record.plan)
        self._running = running
        self._attach = attach
        self._session = session or nullcontext()
        self._manifest: Manifest | None = None
        self._error: JacjobsError | None = None
        self._ended = False

    def __repr__(self) -> str:
        return f"<jacjobs.Run of J {self.plan.shape} at {self.path}>"

    def __reduce__(self) -> tuple[Callable[[str], Run], tuple[str]]:
        return self._attach, (self.path,)

    def wait(self, progress: bool | None = None) -> Manifest:
        """Wait for the end, and say what was written.

        progress:  show a bar; None: in a notebook.

        Raises FunctionError, IncompleteError, StoppedError, WorkersError or StoreError.
        """
        if not self._ended:
            shown = bar.in_notebook() if progress is None else progress
            try:
                with bar.watching(self.progress, self.plan) if shown else nullcontext():
                    self._manifest = self._running.result()
            except JacjobsError as error:
                self._error = error
            # Who is interrupted while waiting may wait again.
            self._ended = True
            self._session.__exit__(None, None, None)
        if self._error is not None:
            raise self._error
        assert self._manifest is not None
        return self._manifest

    def result(self, progress: bool | None = None) -> JacobianDataset:
        """Wait for the end, and open the dataset. Raises what `wait` raises."""
        self.wait(progress)
        return open_run(self.path)

    def __await__(self) -> Generator[Any, None, JacobianDataset]:
        """`await run` is `run.result()`, beside other tasks. To cancel that leaves the run as it is."""
        return self._awaited().__await__()

    async def _awaited(self) -> JacobianDataset:
        self._running.start()
        while not await asyncio.to_thread(self.done):
            await asyncio.sleep(self._running.look_seconds)
        return await asyncio.to_thread(self.result, False)

    def __iter__(self) -> Iterator[FinishedBlock]:
        """What is committed of J, from the beginning, and then what is as it comes: each entry once.

        Raises what `wait` raises, after all that was committed.
        """
        self._running.start()
        unseen = _Unseen(self.path, self.plan)
        while unseen.left:
            ended = self.done()
            fresh = unseen.fresh()
            yield from map(unseen.read, fresh)
            if ended:
                break
            if not fresh:
                time.sleep(LIST_SECONDS)
        self.wait(progress=False)

    async def __aiter__(self) -> AsyncIterator[FinishedBlock]:
        """… beside other tasks."""
        self._running.start()
        unseen = _Unseen(self.path, self.plan)
        while unseen.left:
            ended = await asyncio.to_thread(self.done)
            fresh = await asyncio.to_thread(unseen.fresh)
            for rectangle in fresh:
                yield await asyncio.to_thread(unseen.read, rectangle)
            if ended:
                break
            if not fresh:
                await asyncio.sleep(LIST_SECONDS)
        await self

    def done(self) -> bool:
        """Has it ended, well or not? Does not wait."""
        return self._ended or self._running.done()

    def progress(self) -> Progress | None:
        """Where the run stands; None while nobody can say."""
        return None if self._ended else self._running.progress()

    def stop(self) -> None:
        """Hand out no more blocks; `wait` then raises StoppedError. What was committed stays."""
        if not self._ended:
            self._running.stop()
