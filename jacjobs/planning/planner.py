"""The plan: made before anything starts, a pure function of the problem's shape, what is known of it, the
resources and the options.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jacjobs.cost import CostModel
from jacjobs.errors import InputError
from jacjobs.planning.choice import Chooser, Estimate, Resources, Timing, is_by_rows
from jacjobs.planning.geometry import BLOCK_BYTES, Tiling, records_in_a_group, stripe_of
from jacjobs.planning.options import ClusterOptions, ComputeOptions, OutputOptions, Timeout
from jacjobs.planning.sparse import (
    Groups,
    Kind,
    Pace,
    SparseChooser,
    SparseTiling,
    kind_of,
    rows_in_a_group,
    stored_bytes,
)
from jacjobs.shape import Compression, JacobianShape, Layout, Rectangle

RECORD_BYTES = 25
"""What a record takes beside its values: three indices of eight bytes, and what Parquet adds. Compressed,
they take next to nothing.
"""
WORTH_COMPRESSING = 0.2
"""Compression is chosen where it saves so much of the bytes: it halves the speed of writing and reading."""
BEST_COMPRESSION = 10
"""A compressed dataset is refused for lack of disk only if it would not fit even so much smaller."""


class Candidate(BaseModel):
    """A strategy that was considered.

    reason:      why it was dropped; None if it works.
    slow:        it works, for whoever asks for it by name.
    tried:       whether it was run; where even that would take more memory than there is here, it was not.
    chunk, peak_bytes, seconds:  at its best chunk, what a worker takes, how long all of J takes.
    timed:       whether that was measured, or predicted.
    """

    model_config = ConfigDict(frozen=True)

    strategy: str
    reason: str | None = None
    slow: bool = False
    tried: bool = True
    chunk: int | None = None
    peak_bytes: int | None = None
    seconds: float | None = None
    timed: bool = False


class Second(BaseModel):
    """How products of rows are made where most are of columns."""

    model_config = ConfigDict(frozen=True)

    strategy: str
    chunk: int
    checked_by: str | None


class Plan(BaseModel):
    """Everything that decides what is written, frozen when the run begins: resumed, it gives the same bytes.

    by_columns:      whether a product is a column of J; else it is a row.
    checked_by:      the strategy whose products the blocks are checked with; None: no check.
    check_all:       whether every point is checked, not a sample.
    check_points:    how many points are checked at once, at most.
    block_timeout:   after how many seconds at a block a worker counts as hung.
    threads:         torch's threads in each worker: how a sum is split shows in its last bits.
    layout:          what a record holds: a row or a column.
    stripe:          how many entries of it, where it is too long for one record.
    group_records:   records in each Parquet row group.
    groups:          of a sparse J: the products that make its entries; None, if it is dense.
    second:          of a sparse J that takes products of both kinds, how those of rows are made.
    pattern:         the digest of the file that holds the pattern; empty until there is one.
    dense_seconds:   what all products would take, one by one; None, if J is dense or they do not fit.
    leaner:          strategies for a device on which one product of `strategy` does not fit after all.
    resources:       what the plan was made for.
    peak_bytes, seconds, disk_bytes:  predicted: for one worker, for all of J, for the dataset.
    scratch_bytes:   what is on disk besides, while parts are put together.
    timings:         what was measured before the first block, if anything was.
    """

    model_config = ConfigDict(frozen=True)

    shape: JacobianShape
    strategy: str
    chunk: int
    by_columns: bool
    tiling: Annotated[Tiling | SparseTiling, Field(discriminator="layout")]
    checked_by: str | None
    check_all: bool
    check_points: int
    threads: int
    nonfinite: Literal["error", "warn", "allow"]
    block_timeout: Timeout = "auto"
    layout: Layout
    compression: Compression
    stripe: int | None
    group_records: int
    groups: Groups | None = None
    second: Second | None = None
    pattern: str = ""
    dense_seconds: float | None = None
    leaner: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...]
    resources: Resources
    peak_bytes: int
    seconds: float
    disk_bytes: int
    scratch_bytes: int
    timings: tuple[Timing, ...] = ()

    @model_validator(mode="after")
    def _is_sparse_throughout(self) -> Self:
        sparse = self.groups is not None
        if sparse != isinstance(self.tiling, SparseTiling) or sparse != (self.layout == "sparse"):
            raise ValueError("it is sparse in parts")
        return self

    @property
    def block_bytes(self) -> int:
        """Of the largest block."""
        if isinstance(self.tiling, SparseTiling):
            return self.tiling.most_entries * self.shape.item_bytes
        return self.tiling.block(0, 0).entries * self.shape.item_bytes

    @property
    def part_bytes(self) -> int:
        """Of the largest part, uncompressed."""
        part = self.tiling.part(0)
        if self.groups is None:
            return part.entries * self.shape.item_bytes
        return stored_bytes(self.shape, self.groups.entries) * part.points // self.shape.points

    def pieces(self, part: int) -> Iterator[Rectangle]:
        """A part of J, in pieces of at most a block's memory: of some points, or of some lines of one."""
        whole = self.tiling.part(part)
        if self.groups is not None:
            for point in range(whole.point_start, whole.point_stop):
                yield whole._replace(point_start=point, point_stop=point + 1)
            return
        box = whole.box(self.layout)
        line_bytes = box.width * self.shape.item_bytes
        lines = max(1, min(box.lines, BLOCK_BYTES // line_bytes))
        points = max(1, BLOCK_BYTES // (box.lines * line_bytes)) if lines == box.lines else 1
        for piece in box.pieces(lines, points=points):
            yield piece.rectangle(self.layout)


class Way(BaseModel):
    """Groups that make all entries of a sparse J, and what their products cost by each strategy."""

    model_config = ConfigDict(frozen=True)

    groups: Groups
    models: tuple[CostModel, ...]


class Facts(BaseModel):
    """What is known of a problem: its strategies, in order of preference, and what each costs.

    verdicts:  a candidate for each strategy, with the reason if it is none.
    models:    of those that run.
    saving:    the part of its bytes that compression saves on a sample of J; None if nobody looked.
    sparse:    ways to make all entries that may be other than zero; none, if J is dense or nobody looked.
    dense_because:  why there are none, if somebody looked.
    given:     whether the user says which entries these are.
    """

    model_config = ConfigDict(frozen=True)

    shape: JacobianShape
    verdicts: tuple[Candidate, ...]
    models: tuple[CostModel, ...]
    saving: float | None = None
    sparse: tuple[Way, ...] = ()
    dense_because: str | None = None
    given: bool = False

    def stored(self, output: OutputOptions) -> JacobianShape:
        """The shape, as it is stored."""
        return self.shape.model_copy(update={"dtype": output.dtype or self.shape.dtype})


WORTH_LEAVING_OUT = 4.0
"""Zeros are left out where products are so many times fewer, and the dataset so many times smaller."""

Checkers = Callable[[str], Sequence[str]]
"""Who could check a strategy's blocks, the best first."""


class Planner:
    """Plans for one problem, options and resources."""

    def __init__(
        self,
        facts: Facts,
        compute: ComputeOptions,
        output: OutputOptions,
        cluster: ClusterOptions,
        resources: Resources,
        checkers: Checkers,
    ) -> None:
        self._facts, self._compute, self._output, self._cluster = facts, compute, output, cluster
        self._resources, self._checkers = resources, checkers
        self._shape = facts.stored(output)

    def plan(self) -> Plan:
        """The fastest, dense or sparse.

        Raises InputError where no strategy fits the memory, the dataset not the disk, or where a sparse one
        is asked for and there is none.
        """
        asked = self._compute.structure
        refusal: InputError | None = None
        if asked == "auto" and self._facts.given:
            asked = "sparse"
        if asked == "sparse" and not self._facts.sparse:
            raise InputError.about(
                "compute.structure",
                got=f"sparse, of a J that counts as dense ({self._facts.dense_because})",
                expected="auto or dense",
                do="give the problem a pattern= of your own, or --set compute.structure=dense",
            )
        sparse, dense = [], None
        for way in self._facts.sparse:
            try:
                sparse.append(self.sparse(way.groups))
            except InputError as error:
                refusal = error
        best = min(sparse, key=lambda plan: plan.seconds) if sparse else None
        if asked != "sparse":
            try:
                dense = self.dense()
            except InputError:
                if best is None:
                    raise
        if dense is not None and (best is None or not _is_worth(best, dense)):
            return dense
        if best is None:
            assert refusal is not None
            raise refusal
        return best

    def dense(self, timings: Sequence[Timing] = ()) -> Plan:
        """Raises InputError where no strategy fits the memory, or the dataset not the disk."""
        output, resources, shape = self._output, self._resources, self._shape
        chooser = chooser_for(self._facts, self._compute, output, resources, timings=timings)
        ranked = chooser.ranked()
        if not ranked:
            raise _too_large(chooser, resources)
        best = ranked[0]
        tiling = chooser.tiling(chooser.models[best.strategy], best.chunk, best.product_seconds)
        compression = _compression(self._facts, output)
        disk_bytes, scratch_bytes = _disk(shape, tiling, resources.workers)
        _check_disk(disk_bytes, scratch_bytes, resources, output.path, compression)
        return self._frozen(
            best,
            self._candidates(chooser, ranked),
            tiling=tiling,
            check_all=self._compute.check == "all",
            layout=output.layout,
            compression=compression,
            stripe=stripe_of(tiling.length, shape.item_bytes),
            group_records=records_in_a_group(tiling.length, shape.item_bytes),
            leaner=_leaner(best, self._facts),
            peak_bytes=best.peak_bytes,
            seconds=best.seconds,
            disk_bytes=disk_bytes,
            scratch_bytes=scratch_bytes,
            timings=tuple(timings),
        )

    def sparse(self, groups: Groups, timings: Sequence[Timing] = ()) -> Plan:
        """Of these groups' products. Raises InputError as `dense` does."""
        output, resources, shape = self._output, self._resources, self._shape
        chooser = chooser_for(self._facts, self._compute, output, resources, groups, timings)
        assert isinstance(chooser, SparseChooser)
        ranked = chooser.ranked()
        best: dict[Kind, Estimate] = {}
        for estimate in ranked:
            best.setdefault(kind_of(estimate.strategy), estimate)
        if set(best) != set(groups.kinds):
            raise _too_large(chooser, resources)
        first, *others = [best[kind] for kind in groups.kinds]
        self._check_that_it_is_checked(best.values())
        disk_bytes = stored_bytes(shape, groups.entries)
        compression: Compression = "none" if output.compression == "auto" else output.compression
        _check_disk(disk_bytes, 0, resources, output.path, compression)
        paces = {
            kind: Pace(chunk=each.chunk, product_seconds=each.product_seconds) for kind, each in best.items()
        }
        return self._frozen(
            first,
            self._candidates(chooser, ranked),
            tiling=chooser.cut(paces),
            check_all=self._compute.check == "all" or self._facts.given,
            layout="sparse",
            compression=compression,
            stripe=None,
            group_records=rows_in_a_group(shape, groups.entries),
            groups=groups,
            second=self._second(others[0]) if others else None,
            dense_seconds=self._dense_seconds,
            leaner=() if others else _leaner(first, self._facts),
            peak_bytes=max(each.peak_bytes for each in best.values()),
            seconds=sum(each.seconds for each in best.values()),
            disk_bytes=disk_bytes,
            scratch_bytes=0,
            timings=tuple(timings),
        )

    def _frozen(self, best: Estimate, candidates: tuple[Candidate, ...], **others: Any) -> Plan:
        """With what all plans have."""
        checker = self._checker(best.strategy)
        return Plan(
            shape=self._shape,
            strategy=best.strategy,
            chunk=best.chunk,
            by_columns=not is_by_rows(best.strategy),
            checked_by=None if checker is None else checker.strategy,
            check_points=1 if checker is None else _check_points(checker, best.chunk, self._resources),
            threads=self._cluster.cpus_per_worker,
            nonfinite=self._compute.nonfinite,
            block_timeout=self._compute.block_timeout,
            candidates=candidates,
            resources=self._resources,
            **others,
        )

    def _second(self, estimate: Estimate) -> Second:
        checker = self._checker(estimate.strategy)
        by = None if checker is None else checker.strategy
        return Second(strategy=estimate.strategy, chunk=estimate.chunk, checked_by=by)

    def _candidates(self, chooser: Chooser, ranked: Sequence[Estimate]) -> tuple[Candidate, ...]:
        fitting = {estimate.strategy: estimate for estimate in ranked}
        return _candidates(self._facts, self._compute.strategy, chooser, fitting)

    def _check_that_it_is_checked(self, estimates: Iterable[Estimate]) -> None:
        """A user's pattern is only as good as what is compared with it."""
        for estimate in estimates:
            unchecked = self._facts.given and self._checker(estimate.strategy) is None
            if unchecked and self._compute.check != "off":
                raise InputError.about(
                    "Problem pattern",
                    got=f"one of a function whose products by {estimate.strategy} no strategy can check",
                    expected="a function that works in the other mode of differentiation too",
                    do="give its operators the rules that they lack, or --set compute.check=off to trust it",
                )

    @functools.cached_property
    def _dense_seconds(self) -> float | None:
        """Of the fastest, whether there is room on the disk or not."""
        chooser = chooser_for(self._facts, self._compute, self._output, self._resources)
        return next((estimate.seconds for estimate in chooser.ranked()), None)

    def _checker(self, strategy: str) -> CostModel | None:
        if self._compute.check == "off":
            return None
        found = (_model(self._facts, name) for name in self._checkers(strategy))
        return next((model for model in found if model is not None), None)


def _is_worth(sparse: Plan, dense: Plan) -> bool:
    """By what does not depend on the machine."""
    assert sparse.groups is not None
    one_by_one = min(dense.shape.rows, dense.shape.columns)
    return (
        sparse.groups.products * WORTH_LEAVING_OUT <= one_by_one
        and sparse.disk_bytes * WORTH_LEAVING_OUT <= dense.disk_bytes
    )


def chooser_for(
    facts: Facts,
    compute: ComputeOptions,
    output: OutputOptions,
    resources: Resources,
    groups: Groups | None = None,
    timings: Sequence[Timing] = (),
) -> Chooser:
    """The strategies that may be chosen: those that work, or the one asked for. groups: for a sparse J."""
    asked = compute.strategy
    allowed = {
        v.strategy
        for v in facts.verdicts
        if (asked == "auto" and v.reason is None) or (asked == v.strategy and (v.reason is None or v.slow))
    }
    shape, chunk = facts.stored(output), None if compute.chunk == "auto" else compute.chunk
    if groups is None:
        models = [model for model in facts.models if model.strategy in allowed]
        packed = _compression(facts, output)
        return Chooser(shape, resources, models, timings, packed, chunk, output.layout)
    way = next(way for way in facts.sparse if way.groups == groups)
    models = [model for model in way.models if model.strategy in allowed]
    return SparseChooser(shape, groups, resources, models, timings, chunk=chunk)


def _compression(facts: Facts, output: OutputOptions) -> Compression:
    if output.compression != "auto":
        return output.compression
    return "zstd" if (facts.saving or 0.0) >= WORTH_COMPRESSING else "none"


def _candidates(
    facts: Facts, asked: str, chooser: Chooser, fitting: dict[str, Estimate]
) -> tuple[Candidate, ...]:
    """Those that were considered, with what they would take."""
    rows = []
    for verdict in facts.verdicts:
        if asked not in ("auto", verdict.strategy):
            continue
        estimate = fitting.get(verdict.strategy)
        if estimate is not None:
            rows.append(
                verdict.model_copy(
                    update={
                        "chunk": estimate.chunk,
                        "peak_bytes": estimate.peak_bytes,
                        "seconds": estimate.seconds,
                        "timed": estimate.timed,
                    }
                )
            )
        elif verdict.strategy in chooser.models:
            model = chooser.models[verdict.strategy]
            needed = chooser.least(model).bytes
            rows.append(
                verdict.model_copy(update={"reason": "too large for the memory", "peak_bytes": needed})
            )
        elif verdict.reason is None and isinstance(chooser, SparseChooser):
            kind = kind_of(verdict.strategy)
            reason = f"its products are {kind}: groups of {chooser.groups.kinds[0]} take less time"
            rows.append(verdict.model_copy(update={"reason": reason}))
        else:
            rows.append(verdict)
    return tuple(rows)


def _too_large(chooser: Chooser, resources: Resources) -> InputError:
    needs = {model.strategy: chooser.least(model) for model in chooser.models.values()}
    if not needs:
        return InputError.about("strategy", got="none whose memory can be predicted", expected="at least one")
    leanest = min(needs, key=lambda name: needs[name].bytes)
    least = needs[leanest]
    return InputError.about(
        "memory",
        got=f"a budget of {resources.budget_bytes:,} bytes a worker",
        expected=f"at least {least.bytes:,}, which {leanest} takes in chunks of {least.chunk:,}",
        do="allow more (--set compute.memory=…), use fewer workers, or make the function's intermediate "
        "results smaller",
    )


def _disk(shape: JacobianShape, tiling: Tiling, workers: int) -> tuple[int, int]:
    """Bytes of the dataset uncompressed, and of the scratch files beside it."""
    stripes = -(-tiling.length // (stripe_of(tiling.length, shape.item_bytes) or tiling.length))
    dataset = shape.total_bytes + shape.points * tiling.lines * stripes * RECORD_BYTES
    spilled = shape.matrix_bytes * tiling.points_at_once(workers) if tiling.spills else 0
    return dataset, spilled


def _check_disk(
    disk_bytes: int, scratch_bytes: int, resources: Resources, path: str, compression: Compression
) -> None:
    free = resources.disk_free_bytes
    least = scratch_bytes + (disk_bytes if compression == "none" else disk_bytes // BEST_COMPRESSION)
    if free is not None and least > free:
        raise InputError.about(
            f"disk space at {path}",
            got=f"{free:,} bytes free",
            expected=f"{least:,} for the dataset",
            do="choose another output.path, or compute a part of it",
        )


def _check_points(checker: CostModel, chunk: int, resources: Resources) -> int:
    """A point takes one product and what comes before it; as many at once as a chunk has, within the
    budget.
    """
    each = checker.peak_bytes(checker.step)
    return max(1, min(chunk, int(resources.budget_bytes // max(1.0, each))))


def _leaner(best: Estimate, facts: Facts) -> tuple[str, ...]:
    """Strategies that work, with products of the same kind, and take less at one product; the leanest
    last.
    """
    works = {v.strategy for v in facts.verdicts if v.reason is None} | {best.strategy}
    sizes = {
        m.strategy: m.peak_bytes(1)
        for m in facts.models
        if is_by_rows(m.strategy) == is_by_rows(best.strategy)
    }
    leaner = [name for name, size in sizes.items() if name in works and size < sizes[best.strategy]]
    return tuple(sorted(leaner, key=lambda name: -sizes[name]))


def _model(facts: Facts, strategy: str) -> CostModel | None:
    works = any(v.strategy == strategy and v.reason is None for v in facts.verdicts)
    return next((m for m in facts.models if works and m.strategy == strategy), None)
