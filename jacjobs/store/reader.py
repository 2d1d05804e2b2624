"""Reading a dataset back: `jacjobs.open(path)`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jacjobs.shape import Rectangle, Segment, Tree
from jacjobs.store import products
from jacjobs.store.folder import Manifest, RunFolder, RunRecord
from jacjobs.store.memory import room
from jacjobs.store.selection import Axis, Wanted, find_segment, parse_index
from jacjobs.store.sparse_parts import parts_of

if TYPE_CHECKING:
    import pyarrow.dataset
    import torch

    from jacjobs.store.attempt import Attempt
    from jacjobs.store.portrait import Portrait
    from jacjobs.store.spectrum import Spectrum

MEMORY_BYTES = 256 << 20
"""What products of J with itself may take for it, beside the result."""


def open_run(path: str | Path) -> JacobianDataset:
    """The Jacobian that a run left (or is leaving) at `path`, a folder or a URI.

    Raises InputError where there is no run, StoreError where it is damaged. A run that is not finished opens
    too: reading what is not there yet raises StoreError, and `missing` says what that is.
    """
    folder = RunFolder(path)
    folder.require_run()
    if folder.record().layout == "sparse":
        from jacjobs.store.sparse import SparseDataset

        return SparseDataset(folder)
    return JacobianDataset(folder)


class JacobianDataset:
    """J on disk: P matrices of m rows × n columns. Nothing is read before it is asked for.

    >>> J = jacjobs.open("runs/digits")
    >>> J.shape                     # (P, m, n)
    (1797, 10, 64)
    >>> J[0]                        # one point's matrix, a NumPy array of shape (m, n)
    >>> J[:100, 3, "input"]         # points, rows, columns, as NumPy would; or the name of a segment
    >>> J @ v                       # as J.to_numpy() @ v, streamed

    What it holds is read in threads, the row groups that are needed and no others, and each page is checked
    against its checksum: a damaged part raises StoreError.
    """

    __array_ufunc__ = None
    """`u @ J` is ours: NumPy must not make an array of J first."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.record: RunRecord = folder.record()
        self._manifest = folder.manifest()
        self._parts = parts_of(folder, self.record, self._manifest)
        stored = self.record.shape
        self._rows, self._columns = range(stored.rows), range(stored.columns)
        self._outputs, self._inputs = stored.outputs, stored.inputs

    # -- what it is ----------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """An absolute path, or a URI."""
        return self._folder.uri

    @property
    def points(self) -> int:
        """P."""
        return self.record.shape.points

    @property
    def shape(self) -> tuple[int, int, int]:
        """(P, m, n)."""
        return self.points, len(self._rows), len(self._columns)

    @property
    def ndim(self) -> int:
        return 3

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.record.shape.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of J in memory."""
        P, m, n = self.shape
        return P * m * n * self.dtype.itemsize

    @property
    def outputs(self) -> tuple[Segment, ...]:
        """The rows that belong to each leaf of the function's output."""
        return self._outputs

    @property
    def inputs(self) -> tuple[Segment, ...]:
        """The columns that belong to each differentiated leaf."""
        return self._inputs

    @property
    def segments(self) -> dict[str, tuple[Segment, ...]]:
        """`outputs` and `inputs`."""
        return {"outputs": self.outputs, "inputs": self.inputs}

    @property
    def manifest(self) -> Manifest | None:
        """None if the run was not complete when the dataset was opened."""
        return self._manifest

    @property
    def complete(self) -> bool:
        return self._manifest is not None

    @property
    def missing(self) -> list[Rectangle]:
        """What the run had not written when the dataset was opened."""
        return list(self._parts.missing)

    @property
    def stored_bytes(self) -> int:
        """Bytes of its files."""
        sizes = self._folder.place.files()
        return sum(sizes.get(name, 0) for name in self.part_names)

    @property
    def attempts(self) -> list[Attempt]:
        """How it was computed: every submit and resume that left a record, in their order."""
        return self._folder.attempts(self._manifest)

    @property
    def part_names(self) -> list[str]:
        """Files of the dataset, in the order of their records."""
        return [part.name for part in self._parts.all]

    def parts_with(self, rectangle: Rectangle) -> list[str]:
        """The files that hold entries of a rectangle of J."""
        box = rectangle.box(self.record.layout)
        wanted = Wanted(
            Axis(range(box.point_start, box.point_stop)),
            Axis(range(box.line_start, box.line_stop)),
            Axis(range(box.start, box.stop)),
        )
        return [part.name for part in self._parts.all if wanted.overlap(part.box) is not None]

    def __repr__(self) -> str:
        state = "complete" if self.complete else "incomplete"
        size = " × ".join(f"{length:,}" for length in self.shape)
        return f"<jacjobs dataset {self.record.name!r}: {size} {self.dtype}, {state}, {self.path}>"

    def __len__(self) -> int:
        return self.points

    # -- entries -------------------------------------------------------------------------------------------

    def segment(self, *, output: str | None = None, input: str | None = None) -> JacobianDataset:
        """The rows of one output leaf, the columns of one input leaf, or both: a dataset like this one.

        `J.segment(input="layer1.weight").gram()` is the tangent kernel of that layer alone.
        Raises InputError for a name that no segment has.
        """
        other = copy.copy(self)
        if output is not None:
            rows = find_segment(self._outputs, output)
            other._rows, other._outputs = self._rows[rows.start : rows.stop], (_alone(rows),)
        if input is not None:
            columns = find_segment(self._inputs, input)
            other._columns, other._inputs = self._columns[columns.start : columns.stop], (_alone(columns),)
        return other

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """`J[points, rows, columns]`, as NumPy would index the array: integers, slices, arrays of integers or
        of bool, `...`. Rows and columns may be the name of a segment.

        Reads only the row groups that hold some of it. Several arrays in one index pair up, as NumPy's do,
        but all their combinations are read first. Raises StoreError where some of it is not there yet.
        """
        parsed = parse_index(index, self.shape, self._outputs, self._inputs)
        read = self._read(*parsed.axes)
        entries: NDArray[Any] = read[parsed.again]
        return entries

    def to_numpy(self, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """All of J in memory: shape (P, m, n). `out`, if given, is filled and returned.

        Raises ValueError for an `out` of another shape or dtype.
        """
        if out is not None and (out.shape != self.shape or out.dtype != self.dtype):
            raise ValueError(
                f"out: got shape {out.shape} and {out.dtype}, expected {self.shape} and {self.dtype}"
            )
        P, m, n = self.shape
        return self._read(Axis(range(P)), Axis(range(m)), Axis(range(n)), out)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("J is on disk: an array of it is always a copy")
        return self.to_numpy().astype(dtype or self.dtype, copy=False)

    def to_torch(self) -> torch.Tensor:
        """All of J in memory, as a tensor of shape (P, m, n) on the CPU."""
        import torch

        return torch.from_numpy(self.to_numpy())

    def tree(self) -> Any:
        """All of J in memory, in the structure that `torch.func.jacrev` returns: outputs outside, inputs
        inside. Leaves are NumPy arrays of shape (*output, *input), or (P, *output, *input) with `in_dims`.
        """
        structure = self.record.shape.structure
        stored = self.record.shape
        if structure is None or (self._outputs, self._inputs) != (stored.outputs, stored.inputs):
            raise ValueError("a segment has no structure of its own; call tree() of the whole dataset")
        J = self.to_numpy()
        points = (self.points,) if structure.has_points else ()

        def leaf(output: Segment, input: Segment) -> NDArray[Any]:
            entries = J[:, output.start : output.stop, input.start : input.stop]
            return entries.reshape(points + output.shape + input.shape)

        return _grown(
            structure.outputs,
            lambda i: _grown(structure.inputs, lambda j: leaf(self._outputs[i], self._inputs[j])),
        )

    # -- products ------------------------------------------------------------------------------------------

    def __matmul__(self, v: Any) -> NDArray[Any]:
        """`J.to_numpy() @ v`, streamed: v of shape (n,) gives (P, m), of shape (n, k) (P, m, k)."""
        v = _vector("J @ v", v, self.shape[2], "n", 0)
        made = self._source().by_columns(v[None] if v.ndim == 2 else v[None, :, None], total=False)
        return made if v.ndim == 2 else made[:, :, 0]

    def __rmatmul__(self, u: Any) -> NDArray[Any]:
        """`u @ J.to_numpy()`, streamed: u of shape (m,) gives (P, n), of shape (k, m) (P, k, n)."""
        u = _vector("u @ J", u, self.shape[1], "m", -1)
        made = self._source().by_rows(u.T[None] if u.ndim == 2 else u[None, :, None], total=False)
        return made.transpose(0, 2, 1) if u.ndim == 2 else made[:, :, 0]

    def gram(self, memory_bytes: int = MEMORY_BYTES) -> NDArray[Any]:
        """J Jᵀ of the (P·m) × n matrix of all points' rows: the empirical tangent kernel, shape (P·m, P·m).

        Streamed: takes about `memory_bytes` beside the result. One pass over J in layout `columns`; in layout
        `rows` as many as there are times half that memory in J, and at least one.
        Source: A. Jacot, F. Gabriel, C. Hongler, "Neural tangent kernel", NeurIPS (2018).
        """
        return self._source().gram(memory_bytes)

    def normal(self, memory_bytes: int = MEMORY_BYTES) -> NDArray[Any]:
        """Jᵀ J of the (P·m) × n matrix of all points' rows, shape (n, n): the matrix of the normal equations.

        Streamed as `gram` is, with the layouts changed over.
        """
        return self._source().normal(memory_bytes)

    def linear_operator(self) -> Any:
        """The (P·m) × n matrix of all points' rows, as a `scipy.sparse.linalg.LinearOperator`: for `svds`,
        `lsqr` and the like, on a J of any size. Each product reads J once.
        """
        from jacjobs.store.exports import linear_operator

        return linear_operator(self._source(), self.shape, self.dtype)

    # -- for other libraries -------------------------------------------------------------------------------

    def dataset(self) -> pyarrow.dataset.Dataset:
        """An Arrow dataset over the parts: columns point, row (or column), start, values.

        Footers are checked first: Arrow reads what is there as it is.
        """
        from jacjobs.store.exports import arrow_dataset

        self._parts.check(self.part_names)
        return arrow_dataset(self._folder.place, self.record, self.part_names)

    def ray(self) -> Any:
        """A Ray dataset over the parts, with the same columns."""
        from jacjobs.store.exports import ray_dataset

        self._parts.check(self.part_names)
        return ray_dataset(self._folder.place, self.part_names)

    # -- what it looks like --------------------------------------------------------------------------------

    def portrait(self) -> Portrait:
        """Norms, extremes, zeros, and the largest absolute value in each of a few hundred thousand cells: one
        pass over what is there. Takes memory for a number for each point, row and column, and little more.

        Raises TooLargeError where these are too many.
        """
        from jacjobs.store.portrait import portrait_of

        return portrait_of(self._source(), self.shape)

    def singular_values(self, count: int = 32) -> Spectrum:
        """Of the (P·m) × n matrix of all points' rows: all if it is small, else at most `count` of the
        largest: from the first that is not found to 1% on, none is given. Streamed, in nine passes over J,
        or twice as many where records are no whole rows.

        Raises StoreError where some of J is not there yet, ValueError where it is not finite.
        """
        from jacjobs.store.spectrum import spectrum_of

        return spectrum_of(self._source(), self.shape, count)

    def summary(self) -> dict[str, Any]:
        """What `jacjobs show` says, as plain data."""
        from jacjobs.store.summary import figures_of, summary_of

        return summary_of(self, *figures_of(self))

    # -- within --------------------------------------------------------------------------------------------

    def _source(self) -> products.Source:
        rows, columns = Axis(self._rows), Axis(self._columns)
        by_rows = self.record.layout != "columns"
        lines, positions = (rows, columns) if by_rows else (columns, rows)
        wanted = Wanted(Axis(range(self.points)), lines, positions)
        return products.Source(self._parts, wanted, self.dtype, by_rows=by_rows)

    def _read(self, points: Axis, rows: Axis, columns: Axis, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Entries at all combinations, shape (points, rows, columns)."""
        extent = len(points), len(rows), len(columns)
        rows, columns = rows.shifted(self._rows.start), columns.shifted(self._columns.start)
        by_rows = self.record.layout != "columns"
        wanted = Wanted(points, rows, columns) if by_rows else Wanted(points, columns, rows)
        self._parts.require(wanted)  # before memory is taken for it
        if out is None:
            out = room(extent, self.dtype, np.empty)
        self._parts.read(wanted, out if by_rows else out.transpose(0, 2, 1))
        return out


def _alone(segment: Segment) -> Segment:
    return segment.model_copy(update={"start": 0, "stop": segment.size})


def _vector(what: str, given: Any, size: int, name: str, axis: int) -> NDArray[Any]:
    array = np.asarray(given)
    if array.ndim not in (1, 2) or array.shape[axis] != size:
        raise ValueError(
            f"{what}: got an array of shape {array.shape}, expected {name} = {size:,} along its "
            f"{'first' if axis == 0 else 'last'} axis, and at most two axes"
        )
    return array


def _grown(tree: Tree, leaf: Any) -> Any:
    """The structure with `leaf(number)` for each leaf."""
    if isinstance(tree, int):
        return leaf(tree)
    if "dict" in tree:
        return {key: _grown(child, leaf) for key, child in zip(tree["keys"], tree["dict"], strict=True)}
    if "list" in tree:
        return [_grown(child, leaf) for child in tree["list"]]
    return tuple(_grown(child, leaf) for child in tree["tuple"])
