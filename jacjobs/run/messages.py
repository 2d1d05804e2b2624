"""What the ledger and an executor say to each other: events go in, commands come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from jacjobs.errors import JacjobsError
from jacjobs.store.writer import PartRecord


class BlockId(NamedTuple):
    bundle: int
    position: int


# -- events: what happened ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerJoined:
    """`where`: its node, whose workers may all go at once. `device`: the GPUs that it has."""

    worker: str
    where: str = ""
    device: str = ""


@dataclass(frozen=True)
class WorkerAlive:
    """The answer to `Ping`."""

    worker: str


@dataclass(frozen=True)
class WorkerLost:
    worker: str
    cause: str


class Findings(NamedTuple):
    """What a worker noticed in a block.

    nonfinite:   entries that are NaN or infinite.
    checked:     points compared with another mode of differentiation; `error` is the worst, relative.
    recomputed:  the check failed at first.
    peak_bytes:  what the block took in memory; 0 where that was not measured.
    retreats:    what was done, in words, where memory ran out or code was of no use.
    seconds:     how long it took.
    """

    nonfinite: int = 0
    checked: int = 0
    error: float = 0.0
    recomputed: bool = False
    peak_bytes: int = 0
    retreats: tuple[str, ...] = ()
    seconds: float = 0.0


NOTHING_FOUND = Findings()


@dataclass(frozen=True)
class BlockComputed:
    worker: str
    block: BlockId
    findings: Findings = NOTHING_FOUND


@dataclass(frozen=True)
class BlockRaised:
    """The user's function raised: computing it again would raise again."""

    block: BlockId
    error: JacjobsError


@dataclass(frozen=True)
class AssemblerJoined:
    assembler: str
    where: str = ""


@dataclass(frozen=True)
class AssemblerLost:
    assembler: str
    cause: str


@dataclass(frozen=True)
class BlockAbsorbed:
    """The assembler needs the block's data no more. `committed`: what the bundle's last block completed."""

    assembler: str
    block: BlockId
    committed: PartRecord | Literal["spill"] | None = None


@dataclass(frozen=True)
class BlockLost:
    """Computed, but its data never reached the assembler."""

    assembler: str
    block: BlockId
    cause: str


@dataclass(frozen=True)
class Transposed:
    """A part was read from its spills, and committed."""

    assembler: str
    part: int
    committed: PartRecord


@dataclass(frozen=True)
class TransposeLost:
    """The assembler lives, but gave no part and no reason that is the user's to mend."""

    assembler: str
    part: int
    cause: str


@dataclass(frozen=True)
class WriteFailed:
    """A file cannot be written: disk full, denied."""

    error: JacjobsError


@dataclass(frozen=True)
class StopRequested:
    pass


@dataclass(frozen=True)
class Capacity:
    """There is room for so many workers now."""

    workers: int


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = (
    WorkerJoined
    | WorkerAlive
    | WorkerLost
    | BlockComputed
    | BlockRaised
    | AssemblerJoined
    | AssemblerLost
    | BlockAbsorbed
    | BlockLost
    | Transposed
    | TransposeLost
    | WriteFailed
    | StopRequested
    | Capacity
    | Tick
)


# -- commands: what to do ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartWorker:
    pass


@dataclass(frozen=True)
class StartAssembler:
    pass


@dataclass(frozen=True)
class Ping:
    """Ask a worker for a sign of life."""

    worker: str


@dataclass(frozen=True)
class Kill:
    """End a worker or an assembler that does not answer. It counts as lost already."""

    actor: str


@dataclass(frozen=True)
class Compute:
    """`together`: how many such commands may be carried out as one, which ends when all have."""

    worker: str
    block: BlockId
    together: int = 1


@dataclass(frozen=True)
class Absorb:
    """Give the data that `worker` computed for `block` to the assembler. `together`: as of `Compute`."""

    assembler: str
    block: BlockId
    worker: str
    together: int = 1


@dataclass(frozen=True)
class Drop:
    """Forget the data that `worker` computed for `block`."""

    block: BlockId
    worker: str


@dataclass(frozen=True)
class Abandon:
    """Leave the bundle unfinished and remove what was written of it."""

    assembler: str
    bundle: int


@dataclass(frozen=True)
class Transpose:
    """Read the part from the spills of its matrix, and commit it."""

    assembler: str
    part: int


@dataclass(frozen=True)
class Sweep:
    """Remove the spills of a point, whose parts are all there."""

    assembler: str
    point: int


Command = StartWorker | StartAssembler | Ping | Kill | Compute | Absorb | Drop | Abandon | Transpose | Sweep
