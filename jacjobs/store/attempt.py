"""What happened while a run was carried out: who computed, what was lost, and why.

Each attempt (a submit, a resume) is a file of its own, rewritten while it goes on, so that a run can be
looked at from its folder alone. The manifest, written last, takes them all in.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

FAILURES_KEPT = 1000
"""Of an attempt; more are only counted."""


class Failure(BaseModel):
    """Something was lost, and what it was doing is done again.

    seconds:  since the attempt began. who: the worker or assembler. where: its host.
    blocks:   what it was at, in words.
    """

    model_config = ConfigDict(frozen=True)

    seconds: float
    who: str
    where: str
    cause: str
    blocks: tuple[str, ...] = ()


class Work(BaseModel):
    """What one worker did. `joined` and `left`: seconds since the attempt began; `seconds`: of computing."""

    name: str
    where: str
    device: str = ""
    joined: float
    left: float | None = None
    blocks: int = 0
    seconds: float = 0.0


class Attempt(BaseModel):
    """One submit or resume.

    state:            running, complete, incomplete, failed or stopped; `cause` says why it is not complete.
                      An attempt that says "running" and whose run is locked by nobody was killed.
    exit_code:        of the error that it ended with.
    entries_done, entries_total:  of J; what an earlier attempt committed is not counted.
    blocks_repeated:  blocks that were handed out more than once, each time counted.
    retreats:         what was done, in words, where memory ran out.
    failures:         the first `FAILURES_KEPT` of `failures_total`.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    started: str
    host: str
    pid: int
    state: str
    cause: str = ""
    exit_code: int | None = None
    seconds: float
    blocks_done: int
    blocks_total: int
    entries_done: int = 0
    entries_total: int = 0
    blocks_repeated: int = 0
    retreats: tuple[str, ...] = ()
    workers: tuple[Work, ...] = ()
    failures: tuple[Failure, ...] = ()
    failures_total: int = 0
