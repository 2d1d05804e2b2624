"""What happened while a run was carried out: who computed, what was lost, and why.

Each attempt (a submit, a resume) is a file of its own, rewritten while it goes on, so that a run can be
looked at from its folder alone. The manifest, written last, takes them all in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from jacjobs.store.plausible import LARGEST

FAILURES_KEPT = 1000
"""Of an attempt; more are only counted."""
BUCKETS = 240
"""Of a timeline: when there would be more, each becomes twice as wide."""
NINTHS = 9

_Seconds = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
_Width = Annotated[float, Field(ge=2**-10, le=LARGEST, allow_inf_nan=False)]
_Bytes = Annotated[int, Field(ge=0, le=LARGEST)]
_Some = Field(max_length=BUCKETS)


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
    """What one worker did.

    joined, left:  seconds since the attempt began.
    seconds:       of computing blocks that came.
    peak_bytes:    the most memory that a block took, as far as that was measured.
    busy:          when it was computing them: a digit for each `Timeline.lane_seconds`, from those in
                   which it joined; 9 is all of that time, 0 none.
    """

    name: str
    where: str
    device: str = ""
    joined: float
    left: float | None = None
    blocks: int = 0
    seconds: float = 0.0
    peak_bytes: _Bytes = 0
    busy: Annotated[str, Field(pattern="^[0-9]*$", max_length=BUCKETS + 1)] = ""


def digits(busy: Iterable[float], width: float) -> str:
    """Seconds of each bucket, as `Work.busy` says them."""
    return "".join(str(min(NINTHS, max(0, round(NINTHS * seconds / width)))) for seconds in busy)


def shares(busy: str) -> Iterator[float]:
    """How much of each bucket those digits mean: 0 to 1."""
    return (int(digit) / NINTHS for digit in busy)


class Timeline(BaseModel):
    """When what was done, in at most `BUCKETS` buckets of time since the attempt began.

    seconds:       of a bucket.
    computed:      entries of J that workers computed, spread over the time that they took.
    taken:         entries that assemblers took in, less those that were lost with one.
    busy:          seconds of computing, of all workers together.
    lane_seconds:  of a digit of `Work.busy`.
    """

    model_config = ConfigDict(frozen=True)

    seconds: _Width
    computed: Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST)], ...], _Some] = ()
    taken: Annotated[tuple[Annotated[int, Field(ge=-LARGEST, le=LARGEST)], ...], _Some] = ()
    busy: Annotated[tuple[_Seconds, ...], _Some] = ()
    lane_seconds: _Width


class Attempt(BaseModel):
    """One submit or resume.

    state:            running, complete, incomplete, failed or stopped; `cause` says why it is not complete.
                      An attempt that says "running" and whose run is locked by nobody was killed.
    exit_code:        of the error that it ended with.
    entries_done, entries_total:  of J; what an earlier attempt committed is not counted.
    blocks_repeated:  blocks that were handed out more than once, each time counted.
    retreats:         what was done, in words, where memory ran out or code was of no use.
    failures:         the first `FAILURES_KEPT` of `failures_total`.
    timeline:         None of an earlier version's.
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
    timeline: Timeline | None = None
