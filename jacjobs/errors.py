"""One exception tree. Each class carries the exit code that a command line ends with.

| code | meaning                                                                     |
| ---- | --------------------------------------------------------------------------- |
| 0    | complete                                                                    |
| 1    | the run failed for a reason outside the job: disk full, no worker starts    |
| 2    | a job file, an argument or a place is wrong; nothing was started or written |
| 3    | the user's function raised, or its Jacobian is not finite or fails the check |
| 4    | incomplete: some blocks could not be computed, the rest is there            |
| 75   | stopped on request, or left alone while it runs elsewhere (EX_TEMPFAIL: a scheduler may requeue) |
| 77   | skipped: an occurrence that its schedule forbids to start now               |
"""

from __future__ import annotations

from typing import ClassVar, Self

OUT_OF_MEMORY = "out of memory with"
"""In what is said of a chunk that was made smaller for lack of memory, before the strategy's name."""


class JacjobsError(Exception):
    """Whatever jacjobs raises on purpose. The message is for the user: one sentence, no internals."""

    exit_code: ClassVar[int] = 1


class InputError(JacjobsError):
    """Something the user gave is wrong: a job file, an argument, a place."""

    exit_code = 2

    @classmethod
    def about(cls, subject: str, *, got: object, expected: str, do: str | None = None) -> Self:
        """The usual sentence: what was got, what was expected, and what to do."""
        remedy = f"; {do}" if do else ""
        return cls(f"{subject}: got {got}, expected {expected}{remedy}")


class TooLargeError(InputError, MemoryError):
    """More of J was asked for at once than the memory holds."""


class RunHeldError(InputError):
    """Somebody else writes that run."""


class RunDiffersError(InputError):
    """The output path holds a run of another job."""

    @classmethod
    def checklist(cls, path: str, differences: list[tuple[str, str, str]]) -> Self:
        """`differences` holds (what, what the run has, what this job has)."""
        rows = [f"  {what}: the run has {had}, this job has {has}" for what, had, has in differences]
        head = (
            f"{path} holds a run of a different job; choose another path (--out), or replace the run "
            "(--force-new; overwrite=True in Python). What differs:"
        )
        return cls("\n".join([head, *rows]))


class FunctionError(JacjobsError):
    """The user's function raised. `user_traceback` is theirs alone: from their first frame on."""

    exit_code = 3

    def __init__(self, message: str, user_traceback: str = "") -> None:
        super().__init__(message, user_traceback)
        self.message = message
        self.user_traceback = user_traceback

    def __str__(self) -> str:
        return self.message


class NonFiniteError(FunctionError):
    """The Jacobian holds NaN or infinity and the job says `nonfinite: error`."""


class CheckError(FunctionError):
    """Two modes of differentiation disagree about J, and computing it again did not help."""


class IncompleteError(JacjobsError):
    """Some blocks could not be computed; everything else was committed."""

    exit_code = 4


class StoppedError(JacjobsError):
    """The run was asked to stop. What was committed stays; `resume` goes on."""

    exit_code = 75


class SkippedError(JacjobsError):
    """An occurrence of a schedule was not started: an earlier one goes on, or it is too late."""

    exit_code = 77


class WorkersError(JacjobsError):
    """No worker or assembler can be started, or they all keep dying."""


class DeviceMemoryError(JacjobsError):
    """Not even one product of the leanest strategy fits the device's memory."""


class DeviceLostError(JacjobsError):
    """A GPU reports an error after which its process cannot use it any more."""


class UnsoundError(JacjobsError):
    """A dataset is not what its run wrote."""


class StoreError(JacjobsError):
    """The dataset cannot be written or read: disk full, denied, damaged, not a run."""


class DetachedError(JacjobsError):
    """This process does not watch any more; the run goes on elsewhere."""

    exit_code = 75


def error_of(exit_code: int, message: str, traceback: str = "") -> JacjobsError:
    """The error that another process ended with, by its exit code."""
    match exit_code:
        case FunctionError.exit_code:
            return FunctionError(message, traceback)
        case InputError.exit_code:
            return InputError(message)
        case IncompleteError.exit_code:
            return IncompleteError(message)
        case StoppedError.exit_code:
            return StoppedError(message)
    return WorkersError(message)
