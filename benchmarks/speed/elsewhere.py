"""Peers in a process of their own, which runs and times them there.

Nobody uses both JAX and torch for one Jacobian: neither is to share its heap and threads with the other.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from torch.utils import _pytree as pytree

from benchmarks.speed.pairs import Work, each_of_several, within

Works = dict[str, Work]


class Elsewhere(AbstractContextManager["Elsewhere"]):
    """The works that `make`, which must pickle, returns in a new process."""

    def __init__(self, make: Callable[[], Works]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()
        self.works = {name: There(self, name) for name in self.ask(None)}

    def ask(self, name: str | None, *seconds: float) -> Any:
        """The names; what a work returns, in NumPy; or, of a call, the seconds: as `each_of_several` says."""
        self._connection.send((name, *seconds))
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join()


class There:
    """One of the works elsewhere."""

    def __init__(self, where: Elsewhere, name: str) -> None:
        self._where, self._name = where, name

    def __call__(self) -> Any:
        return self._where.ask(self._name)

    def each_of_several(self, least_seconds: float, most_seconds: float = 3600.0) -> float:
        """Raises TooSlowError."""
        return float(self._where.ask(self._name, least_seconds, most_seconds))


def _serve(connection: Connection, make: Callable[[], Works]) -> None:
    """Until the other side closes it."""
    works = make()
    while True:
        try:
            name, *seconds = connection.recv()
        except EOFError:
            return
        try:
            connection.send(_answer(works, name, *seconds))
        except Exception as error:
            connection.send(error)


def _answer(works: Works, name: str | None, *seconds: float) -> Any:
    if name is None:
        return list(works)
    if not seconds:
        return pytree.tree_map(np.asarray, works[name]())
    least_seconds, most_seconds = seconds
    with within(most_seconds):
        return each_of_several(works[name], least_seconds)
