"""What Ray's errors mean, in a line."""

from __future__ import annotations

import re

import ray

from jacjobs.errors import JacjobsError


def origin_of(error: BaseException) -> BaseException:
    """What an actor raised, or what kept it from its work."""
    cause: BaseException = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return cause


def cause_of(error: BaseException) -> str:
    """What happened, in one line, of an error that Ray spreads over many."""
    origin, said = origin_of(error), str(error)
    if isinstance(origin, JacjobsError):
        return str(origin)
    if isinstance(origin, ray.exceptions.OutOfMemoryError):
        full = _MEMORY_FULL.search(said)
        return f"killed, since the memory of its node was full{f' ({full[1]})' if full else ''}"
    if isinstance(origin, ray.exceptions.ObjectLostError):
        return "its data was on a node that is gone"
    for words, meaning in _MEANINGS.items():
        if words in said:
            return meaning
    raised = _RAISED.findall(said)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return str(raised[-1]) if raised else lines[-1] if lines else type(error).__name__


_MEMORY_FULL = re.compile(r"was (\S+ used / \S+) limit")
_RAISED = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception|Exit|Interrupt)\b.*)$", re.MULTILINE)
_MEANINGS = {
    "Worker unexpectedly exits": "its process was killed, or crashed",
    "actor's node was terminated": "its node is gone",
    "actor's node was preempted": "its node was preempted",
    "is unavailable": "it cannot be reached",
    "its owner has died": "the process that started it is gone",
}
"""What Ray says of a death, and what that means."""
