"""The plan: made before anything starts, a pure function of the problem's shape and the options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """A strategy that was considered.

    reason:  why it was dropped; None if it works.
    slow:    it works, for whoever asks for it by name.
    """

    model_config = ConfigDict(frozen=True)

    strategy: str
    reason: str | None = None
    slow: bool = False


class Plan(BaseModel):
    """Everything that decides what is written, frozen when the run begins: resumed, it gives the same bytes.

    by_columns:      whether a product is a column of J; else it is a row.
    checked_by:      the strategy whose products the blocks are checked with; None: no check.
    check_all:       whether every point is checked, not a sample.
    threads:         torch's threads in each worker: how a sum is split shows in its last bits.
    row_group_rows:  records in each Parquet row group.
    """

    model_config = ConfigDict(frozen=True)

    shape: JacobianShape
    strategy: str
    chunk: int
    by_columns: bool
    tiling: Tiling
    checked_by: str | None
    check_all: bool
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
    checkers: Callable[[str], str | None],
) -> Plan:
    """`candidates` in order of preference; at least one works, and where one is asked for, that one does.

    `checkers` names who can check a strategy's blocks, None if nobody can.
    """
    strategy = next(
        c.strategy
        for c in candidates
        if (compute.strategy == "auto" and c.reason is None)
        or (compute.strategy == c.strategy and (c.reason is None or c.slow))
    )
    by_columns = not strategy.startswith("vjp/")
    chunk = _chunk(shape, strategy, by_columns, compute.chunk)
    return Plan(
        shape=shape,
        strategy=strategy,
        chunk=chunk,
        by_columns=by_columns,
        tiling=tile(shape, chunk, by_columns=by_columns),
        checked_by=None if compute.check == "off" else checkers(strategy),
        check_all=compute.check == "all",
        threads=cluster.cpus_per_worker,
        nonfinite=compute.nonfinite,
        compression=output.compression,
        row_group_rows=max(1, ROW_GROUP_BYTES // shape.row_bytes),
        candidates=tuple(candidates),
    )


def _chunk(shape: JacobianShape, strategy: str, by_columns: bool, asked: int | Literal["auto"]) -> int:
    products, product_bytes = shape.rows, shape.row_bytes
    if by_columns:
        products, product_bytes = shape.columns, shape.column_bytes
    if strategy.endswith("/loop"):
        return 1  # one product at a time is what a loop is
    chunk = max(1, min(CHUNK_BYTES // product_bytes, LARGEST_CHUNK)) if asked == "auto" else asked
    if chunk > products:
        chunk -= chunk % products  # whole points only: the rest of a chunk would stay empty
    return min(chunk, shape.points * products)
