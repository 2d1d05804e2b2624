"""The plan: made before anything starts, a pure function of the problem's shape and the options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from jacjobs.planning.geometry import MIB, Tiling, tile
from jacjobs.planning.options import ClusterOptions, ComputeOptions, OutputOptions
from jacjobs.shape import JacobianShape

CHUNK_BYTES = 32 * MIB
LARGEST_CHUNK = 1024
"""Without a memory model, an automatic chunk holds at most 32 MiB of products and 1,024 of them."""
ROW_GROUP_BYTES = 32 * MIB


class Candidate(BaseModel):
    """A strategy that was considered. `reason` says why it was dropped; None means that it works."""

    model_config = ConfigDict(frozen=True)

    strategy: str
    reason: str | None = None


class Plan(BaseModel):
    """Everything that decides what is written, frozen when the run begins: resumed, it gives the same bytes.

    threads:         torch's threads in each worker: how a sum is split shows in its last bits.
    row_group_rows:  records in each Parquet row group.
    """

    model_config = ConfigDict(frozen=True)

    shape: JacobianShape
    strategy: str
    chunk: int
    tiling: Tiling
    threads: int
    nonfinite: Literal["error", "warn", "allow"]
    compression: Literal["none", "zstd", "lz4"]
    row_group_rows: int
    candidates: tuple[Candidate, ...]


def make_plan(
    shape: JacobianShape,
    candidates: Sequence[Candidate],
    compute: ComputeOptions,
    output: OutputOptions,
    cluster: ClusterOptions,
) -> Plan:
    """`candidates` in order of preference; at least one works, and where one is asked for, that one does."""
    strategy = next(
        c.strategy for c in candidates if c.reason is None and compute.strategy in ("auto", c.strategy)
    )
    chunk = _chunk(shape, strategy, compute.chunk)
    return Plan(
        shape=shape,
        strategy=strategy,
        chunk=chunk,
        tiling=tile(shape, chunk),
        threads=cluster.cpus_per_worker,
        nonfinite=compute.nonfinite,
        compression=output.compression,
        row_group_rows=max(1, ROW_GROUP_BYTES // shape.row_bytes),
        candidates=tuple(candidates),
    )


def _chunk(shape: JacobianShape, strategy: str, asked: int | Literal["auto"]) -> int:
    if strategy.endswith("/loop"):
        return 1  # one product at a time is what a loop is
    chunk = max(1, min(CHUNK_BYTES // shape.row_bytes, LARGEST_CHUNK)) if asked == "auto" else asked
    if chunk > shape.rows:
        chunk -= chunk % shape.rows  # whole points only: the rest of a chunk would stay empty
    return min(chunk, shape.points * shape.rows)
