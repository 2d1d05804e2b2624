"""Reading a dataset back: `jacjobs.open(path)`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jacjobs.errors import StoreError
from jacjobs.shape import Rectangle, Segment
from jacjobs.store.folder import Manifest, RunFolder, RunRecord
from jacjobs.store.schema import part_name, part_schema

if TYPE_CHECKING:
    import torch

READ_THREADS = 4


def open_run(path: str | Path) -> JacobianDataset:
    """The Jacobian that a run left (or is leaving) at `path`.

    Raises InputError where there is no run. A run that is not finished opens too: reading a point that is
    not there yet raises StoreError.
    """
    folder = RunFolder(path)
    folder.require_run()
    return JacobianDataset(folder)


class JacobianDataset:
    """J on disk: P matrices of m rows × n columns. Nothing is read before it is asked for.

    >>> J = jacjobs.open("runs/digits")
    >>> J.shape          # (P, m, n)
    (1797, 10, 64)
    >>> J[0]             # one point's matrix, a numpy array of shape (m, n)
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.record: RunRecord = folder.record()

    @property
    def path(self) -> Path:
        return self._folder.path

    @property
    def shape(self) -> tuple[int, int, int]:
        """(P, m, n)."""
        shape = self.record.shape
        return shape.points, shape.rows, shape.columns

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.record.shape.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of J in memory."""
        return self.record.shape.total_bytes

    @property
    def outputs(self) -> tuple[Segment, ...]:
        """The rows that belong to each leaf of the function's output."""
        return self.record.shape.outputs

    @property
    def inputs(self) -> tuple[Segment, ...]:
        """The columns that belong to each differentiated leaf."""
        return self.record.shape.inputs

    @property
    def manifest(self) -> Manifest | None:
        """None as long as the run is not complete."""
        return self._folder.manifest()

    @property
    def complete(self) -> bool:
        return self.manifest is not None

    def __repr__(self) -> str:
        state = "complete" if self.complete else "incomplete"
        return f"<jacjobs dataset {self.record.name!r}: {self.record.shape}, {state}, {self.path}>"

    def __len__(self) -> int:
        return self.record.shape.points

    def __getitem__(self, point: int) -> NDArray[Any]:
        """J at one point: shape (m, n). Reads only the row groups that hold it."""
        points, rows, columns = self.shape
        index = range(points)[point]  # negative indices and IndexError as a list has them
        out = np.empty((rows, columns), self.dtype)
        self._fill(out, index * rows)
        return out

    def to_numpy(self) -> NDArray[Any]:
        """All of J in memory: shape (P, m, n)."""
        out = np.empty(self.shape, self.dtype)
        self._fill(out.reshape(-1, self.shape[2]), 0)
        return out

    def to_torch(self) -> torch.Tensor:
        """All of J in memory, as a tensor of shape (P, m, n) on the CPU."""
        import torch

        return torch.from_numpy(self.to_numpy())

    def dataset(self) -> pyarrow.dataset.Dataset:
        """An Arrow dataset over the parts: columns point, row, start, values."""
        shape = self.record.shape
        return pyarrow.dataset.dataset(
            [str(self.path / name) for name in self._folder.part_names()],
            schema=part_schema(shape.columns, shape.dtype),
            format="parquet",
        )

    def summary(self) -> dict[str, Any]:
        """What `jacjobs show` says, as plain data. Reads J a batch at a time: memory stays bounded."""
        record = self.record
        names = self._folder.part_names()
        content: dict[str, Any] = {
            "name": record.name,
            "path": str(self.path),
            "state": "complete" if self.complete else "incomplete",
            "shape": list(self.shape),
            "dtype": record.shape.dtype,
            "outputs": [segment.model_dump(mode="json") for segment in self.outputs],
            "inputs": [segment.model_dump(mode="json") for segment in self.inputs],
            "strategy": record.plan["strategy"],
            "chunk": record.plan["chunk"],
            "compression": record.plan["compression"],
            "torch": record.versions["torch"],
            "checks": None if self.manifest is None else self.manifest.checks,
            "parts": len(names),
            "bytes": sum((self.path / name).stat().st_size for name in names),
        }
        return {**content, **self._extremes()}

    def _extremes(self) -> dict[str, float]:
        entries, zeros, squares, low, high = 0, 0, 0.0, np.inf, -np.inf
        for part in self._folder.part_rectangles():
            with pq.ParquetFile(self.path / part_name(part), memory_map=True) as file:
                for group in range(file.metadata.num_row_groups):
                    column = file.read_row_group(group, columns=["values"]).column("values")
                    values = column.combine_chunks().flatten().to_numpy()
                    entries += len(values)
                    zeros += len(values) - int(np.count_nonzero(values))
                    squares += float(np.einsum("i,i->", values, values, dtype=np.float64))
                    low, high = min(low, float(values.min())), max(high, float(values.max()))
        if not entries:
            return {"entries": 0}
        return {
            "entries": entries,
            "norm": float(np.sqrt(squares)),
            "min": low,
            "max": high,
            "zeros": zeros / entries,
        }

    def _fill(self, out: NDArray[Any], start: int) -> None:
        """Read records `start…` into the rows of `out`; record point · m + row holds that row."""
        stop = start + len(out)
        overlaps = []
        for part in self._folder.part_rectangles():
            first = part.point_start * self.shape[1] + part.row_start
            if first < stop and start < first + part.points * part.rows:
                overlaps.append((part, first))
        found = sum(
            min(stop, first + part.points * part.rows) - max(start, first) for part, first in overlaps
        )
        if found != len(out):
            raise StoreError(
                f"{self.path} holds {found:,} of the {len(out):,} rows asked for; "
                f"finish it with `jacjobs resume {self.path}`"
            )
        with ThreadPoolExecutor(READ_THREADS) as threads:
            for _ in threads.map(lambda pair: self._fill_from(pair[0], pair[1], out, start), overlaps):
                pass

    def _fill_from(self, part: Rectangle, first: int, out: NDArray[Any], start: int) -> None:
        """Copy what `out` (records `start…`) wants of a part whose first record is `first`."""
        path = self.path / part_name(part)
        stop = start + len(out)
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                self._check_part(file, part, path)
                for group in range(file.metadata.num_row_groups):
                    last = first + file.metadata.row_group(group).num_rows
                    low, high = max(first, start), min(last, stop)
                    if low < high:
                        table = file.read_row_group(group, columns=["values"])
                        # flatten() minds a slice, .values does not
                        values = table.column("values").combine_chunks().flatten().to_numpy()
                        rows = values.reshape(-1, part.columns)
                        out[low - start : high - start] = rows[low - first : high - first]
                    first = last
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {error}") from error

    def _check_part(self, file: pq.ParquetFile, part: Rectangle, path: Path) -> None:
        run = (file.schema_arrow.metadata or {}).get(b"jacjobs.run", b"").decode()
        if run != self.record.run:
            raise StoreError(f"{path} belongs to run {run or '(none)'}, not to {self.record.run}; remove it")
        if file.metadata.num_rows != part.points * part.rows:
            raise StoreError(f"{path} holds {file.metadata.num_rows:,} records, not those of {part}")


def visible_parts(folder: RunFolder, run: str) -> list[str]:
    """Names of the parts that `run` has committed in `folder`, each one's footer read.

    Raises StoreError for a part of another run or a file that is not readable as one.
    """
    names = folder.part_names()
    for name in names:
        path = folder.path / name
        try:
            metadata = pq.read_schema(path).metadata or {}
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {error}; remove it and resume again") from error
        if metadata.get(b"jacjobs.run", b"").decode() != run:
            raise StoreError(f"{path} belongs to another run; remove it and resume again")
    return names
