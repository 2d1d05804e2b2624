"""`jacjobs.structure` against asdex: the same functions in torch and in JAX.

Detection, colouring, and all products with decompression, each in turns, with all cores for both. Both have
worked in this process before: what they import, and compile for any function, does not count. Detection
counts twice: the first time that a function is seen, and in turns after that, when JAX has kept its trace and
what it compiles for a size. Products are made by the fastest of the ways that each has, compiled in JAX. The
Jacobians are compared, with the entries that only one of the patterns has.
"""

from __future__ import annotations

import gc
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from benchmarks.speed.pairs import TooSlowError, Work, each_of_several, in_turns, ratio, seconds_of, within
from jacjobs import Problem
from jacjobs.autodiff.catalogue import COMPILED, STRATEGIES
from jacjobs.autodiff.strategy import Strategy
from jacjobs.shape import Rectangle
from jacjobs.structure.coloured import Coloured
from jacjobs.structure.colouring import Colouring, Grouping, groupings
from jacjobs.structure.compression import Grouped
from jacjobs.structure.detection import detect
from tests.structure import functions
from tests.structure.functions import randn

ROUNDS, QUICK_ROUNDS = 7, 3
LEAST_SECONDS, MOST_SECONDS = 0.02, 30.0
"""Of a timing: what takes less is repeated. Of a comparison: there are fewer rounds, where they would take
longer."""
PATIENCE_SECONDS = 90.0
"""For the first detection and colouring of either."""
AGREE = 1e-10
"""Largest difference of two Jacobians, of the largest entry."""
QUICK_INPUTS = 2500
"""A quick run leaves out functions of more inputs."""
OTHER_DIRECTION = 2
"""What takes more products is tried too, where it takes at most so many times as many."""
CHUNK = 64
"""Products that asdex makes at once, where not all."""

Ours = Callable[[Tensor], Tensor]
Ways = dict[str, Work]
"""To all of J: in compressed rows, or as asdex returns it."""
PLAIN_BY = {"columns": STRATEGIES["jvp/vmap"], "rows": STRATEGIES["vjp/vmap"]}
COMPILED_BY = {"columns": COMPILED["jvp/compiled"], "rows": COMPILED["vjp/compiled"]}


class Sparse(NamedTuple):
    """A function to be measured on: in torch, its twin in JAX, how many inputs it has, what it is made of."""

    make: Callable[..., Ours]
    twin: str
    inputs: int
    sizes: tuple[int, ...] = ()


def _bundle(cameras: int, points: int, observations: int) -> Ours:
    return functions.bundle(cameras, points, observations)[0]


FUNCTIONS = {
    "Brusselator, 32 × 32": Sparse(lambda: functions.brusselator, "brusselator", 2 * 32**2),
    "Brusselator, 128 × 128": Sparse(lambda: functions.brusselator, "brusselator", 2 * 128**2),
    "Brusselator, 512 × 512": Sparse(lambda: functions.brusselator, "brusselator", 2 * 512**2),
    "heat, 200": Sparse(lambda: functions.heat, "heat", 200),
    "heat, 100,000": Sparse(lambda: functions.heat, "heat", 100_000),
    "5th differences, 100,000": Sparse(functions.differences, "differences", 100_000, (5,)),
    "squared differences, 50": Sparse(lambda: functions.squared_differences, "squared_differences", 50),
    "bundle adjustment, 2,400": Sparse(_bundle, "bundle", 1380, (20, 400, 2400)),
    "bundle adjustment, 100,000": Sparse(_bundle, "bundle", 61_800, (200, 20_000, 100_000)),
    "convolutions, 32 × 32": Sparse(functions.convolutions, "convolutions", 32**2, (32,)),
    "arrow, 2,000": Sparse(functions.arrow, "arrow", 2000, (2000,)),
}


def measure(names: Sequence[str] = (), *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """A row for each function; `quick` takes small ones, and no compilers."""
    for side in (
        Jacjobs(functions.squared_differences, randn(9)),
        Asdex("squared_differences", (), randn(9)),
    ):
        side.detect()
        side.colour()
    for name in names or FUNCTIONS:
        if not quick or FUNCTIONS[name].inputs <= QUICK_INPUTS:
            yield _row(name, FUNCTIONS[name], quick=quick)
            gc.collect()


def _row(name: str, function: Sparse, *, quick: bool) -> dict[str, Any]:
    x = randn(function.inputs)
    ours = Jacjobs(function.make(*function.sizes), x)
    sides: dict[str, Side] = {"jacjobs": ours, "asdex": Asdex(function.twin, function.sizes, x)}
    first: dict[str, float] = {}
    missing = ""
    for who, side in list(sides.items()):
        try:
            with within(PATIENCE_SECONDS):
                first[who] = seconds_of(side.detect)
                side.colour()
        except TooSlowError:
            if side is ours:
                raise
            missing = f"{who}: not within {PATIENCE_SECONDS:g} s"
            del sides[who]
    rounds = QUICK_ROUNDS if quick else ROUNDS
    return {
        "function": name,
        "shape": [1, *ours.pattern.shape],
        "missing": missing,
        "entries": {who: side.pattern.nnz for who, side in sides.items()},
        "groups": {who: side.groups() for who, side in sides.items()},
        "first_seconds": first,
        "detection": _compared({who: side.detect for who, side in sides.items()}, rounds),
        "colouring": _compared({who: side.colour for who, side in sides.items()}, rounds),
        "products": _products(name, ours, sides.get("asdex"), rounds, quick=quick),
    }


def _compared(works: dict[str, Work], rounds: int) -> dict[str, Any]:
    """Seconds in turns, and ratios to those of asdex: above 1, jacjobs is faster."""
    longest = max(seconds_of(work) for work in works.values())
    rounds = max(1, min(rounds, int(MOST_SECONDS / longest)))
    seconds = in_turns(works, rounds, LEAST_SECONDS)
    theirs = seconds.get("asdex")
    return {
        "seconds": {who: statistics.median(taken) for who, taken in seconds.items()},
        "ratios": {
            who: ratio(theirs, taken)
            for who, taken in seconds.items()
            if theirs is not None and who != "asdex"
        },
    }


def _alone(work: Work) -> float:
    return min(each_of_several(work, LEAST_SECONDS) for _ in range(3))


def _products(name: str, ours: Jacjobs, theirs: Side | None, rounds: int, *, quick: bool) -> dict[str, Any]:
    """The fastest way of each kind in turns: of jacjobs plain and compiled, of asdex."""
    kinds = {"jacjobs": ours.ways()}
    if not quick:
        kinds["jacjobs, compiled"] = ours.ways(compiled=True)
    if theirs is not None:
        kinds["asdex"] = theirs.ways()
    want = next(iter(kinds["jacjobs"].values()))()
    alone: dict[str, dict[str, float]] = {}
    for kind, ways in kinds.items():
        for way, work in ways.items():
            error = difference(work(), want)
            if not error <= AGREE:
                raise AssertionError(f"{name}: {kind}, {way}: {error:.1e} of the largest entry from plain")
            alone.setdefault(kind, {})[way] = _alone(work)
    best = {kind: min(seconds, key=seconds.__getitem__) for kind, seconds in alone.items()}
    compared = _compared({kind: kinds[kind][way] for kind, way in best.items()}, rounds)
    return {"ways": best, "alone_seconds": alone, **compared}


def difference(J: Any, want: csr_array) -> float:
    """The largest of all entries that either has, of the largest entry."""
    return float(abs(in_rows(J) - want).max() / abs(want).max())


def in_rows(J: Any) -> csr_array:
    """What either returns, in compressed rows."""
    if isinstance(J, csr_array):
        return J
    rows, columns = np.asarray(J.indices).T
    return csr_array(coo_array((np.asarray(J.data), (rows, columns)), shape=J.shape))


class Side(Protocol):
    """A library at work on a function, step by step."""

    pattern: Any

    def detect(self) -> None:
        """Leaves `pattern`, from the function alone."""

    def colour(self) -> None:
        """Leaves groups, from `pattern` alone."""

    def groups(self) -> dict[str, int]:
        """How many there are, of columns and of rows."""
        ...

    def ways(self) -> Ways:
        """From groups to all of J."""
        ...


class Jacjobs:
    def __init__(self, fn: Ours, x: Tensor) -> None:
        self._fn, self._x = fn, x

    def detect(self) -> None:
        found = detect(self._fn, [self._x], [0])
        assert found.pattern is not None, found.reason
        self.pattern = found.pattern

    def colour(self) -> None:
        """In all the ways that a plan chooses from."""
        self._groupings = groupings(self.pattern)

    @property
    def _fewest(self) -> Grouping:
        return min(self._groupings, key=lambda each: each.products)

    def groups(self) -> dict[str, int]:
        return {makes: colouring.groups for makes, colouring in _directions(self._fewest).items()}

    def ways(self, *, compiled: bool = False) -> Ways:
        """All products at once, by each grouping that does not take many more than another."""
        found: Ways = {}
        for grouping in self._groupings:
            if grouping.products > OTHER_DIRECTION * self._fewest.products:
                continue
            strategies = COMPILED_BY if compiled else PLAIN_BY
            parts = {
                strategies[makes]: Grouped(colouring.colours, colouring.groups)
                for makes, colouring in _directions(grouping).items()
            }
            problem = Problem(self._fn, (self._x,))
            work = partial(_all_of, problem, Coloured(self.pattern, grouping), parts)
            if compiled:
                work()
                if any(COMPILED[strategy.name].code(problem).reason for strategy in parts):
                    continue
            found[" and ".join(f"{strategy.name}, {seeds.count:,}" for strategy, seeds in parts.items())] = (
                work
            )
        return found


def _directions(grouping: Grouping) -> dict[str, Colouring]:
    found = {"columns": grouping.columns, "rows": grouping.rows}
    return {makes: colouring for makes, colouring in found.items() if colouring is not None}


def _all_of(problem: Problem, coloured: Coloured, parts: Mapping[Strategy, Grouped]) -> csr_array:
    made = {strategy.makes: _products_of(problem, strategy, seeds) for strategy, seeds in parts.items()}
    entries = coloured.share(0, coloured.products).taken(made.get("columns"), made.get("rows"))
    return coloured.matrix(entries[0])


def _products_of(problem: Problem, strategy: Strategy, seeds: Grouped) -> Any:
    """One a group, in one chunk: (1, groups, m), or n."""
    extent = (0, seeds.count, 0, 1) if strategy.makes == "rows" else (0, 1, 0, seeds.count)
    (chunk,) = strategy.chunks(problem, Rectangle(0, 1, *extent), seeds, seeds.count)
    return chunk.leaves[0].reshape(1, seeds.count, -1).numpy()


class Asdex:
    """As its documentation says: a coloured pattern kept, and what is made of it compiled."""

    def __init__(self, twin: str, sizes: tuple[int, ...], x: Tensor) -> None:
        import asdex

        from benchmarks.speed import sparse_twins

        self._asdex = asdex
        self._fn = getattr(sparse_twins, twin)(*sizes)
        self._x = sparse_twins.array(x)

    def detect(self) -> None:
        self.pattern = self._asdex.jacobian_sparsity(self._fn, self._x)

    def colour(self) -> None:
        self._coloured = self._in_groups()

    def _in_groups(self, mode: str | None = None) -> Any:
        with warnings.catch_warnings(category=self._asdex.DenseColoringWarning, action="ignore"):
            return self._asdex.jacobian_coloring_from_sparsity(self.pattern, mode=mode)

    def groups(self) -> dict[str, int]:
        return {"columns" if self._coloured.mode == "fwd" else "rows": self._coloured.num_colors}

    def ways(self) -> Ways:
        """By the groups that were found, and by those of the other direction; all at once, or some."""
        other = self._in_groups("rev" if self._coloured.mode == "fwd" else "fwd")
        few = other.num_colors <= OTHER_DIRECTION * self._coloured.num_colors
        found: Ways = {}
        for coloured in (self._coloured, other) if few else (self._coloured,):
            for chunk in (None, CHUNK) if coloured.num_colors > CHUNK else (None,):
                name = f"{coloured.mode}, {coloured.num_colors:,}" + (f", chunk {chunk}" if chunk else "")
                found[name] = self._whole(coloured, chunk)
                found[f"{name}, entries"] = self._entries(coloured, chunk)
        return found

    def _whole(self, coloured: Any, chunk: int | None) -> Work:
        """A matrix that compiled code returns."""
        import jax

        made = jax.jit(self._asdex.jacobian_from_coloring(self._fn, coloured, chunk_size=chunk))
        return lambda: jax.block_until_ready(made(self._x))

    def _entries(self, coloured: Any, chunk: int | None) -> Work:
        """The pattern's own indices, and entries that compiled code returns: less is copied."""
        import jax

        products = self._asdex.compressed_jacobian_from_coloring(self._fn, coloured, chunk_size=chunk)
        made = jax.jit(lambda x: self._asdex.decompress_data(products(x), coloured))
        return lambda: coloured.sparsity.to_bcoo(data=jax.block_until_ready(made(self._x)))
