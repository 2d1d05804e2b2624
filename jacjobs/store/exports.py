"""A dataset as other libraries take it. Each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.dataset

from jacjobs.errors import InputError
from jacjobs.store.folder import RunRecord
from jacjobs.store.place import Place
from jacjobs.store.products import Source
from jacjobs.store.schema import part_schema


def arrow_dataset(place: Place, record: RunRecord, names: Sequence[str]) -> pyarrow.dataset.Dataset:
    shape = record.shape
    filesystem, _ = place.arrow("")
    return pyarrow.dataset.dataset(
        [place.arrow(name)[1] for name in names],
        schema=part_schema(record.layout, shape.lines(record.layout)[1], record.stripe, shape.dtype),
        format="parquet",
        filesystem=filesystem,
    )


def ray_dataset(place: Place, names: Sequence[str]) -> Any:
    try:
        import ray.data
    except ImportError as error:
        raise _needs("ray", error) from None
    filesystem, _ = place.arrow("")
    return ray.data.read_parquet([place.arrow(name)[1] for name in names], filesystem=filesystem)


def linear_operator(source: Source, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Any:
    """The rows of all points, stacked: a matrix of shape (P·m, n)."""
    from scipy.sparse.linalg import LinearOperator

    P, m, n = shape

    def forward(v: Any) -> Any:
        v = np.asarray(v).reshape(n, -1)
        return source.by_columns(v[None], total=False).reshape(P * m, -1)

    def backward(u: Any) -> Any:
        u = np.asarray(u).reshape(P, m, -1)
        return source.by_rows(u, total=True)[0]

    return LinearOperator(
        shape=(P * m, n),
        matvec=lambda v: forward(v)[:, 0],
        rmatvec=lambda u: backward(u)[:, 0],
        matmat=forward,
        rmatmat=backward,
        dtype=np.result_type(dtype, np.float32),
    )


def _needs(name: str, error: ImportError) -> InputError:
    return InputError.about(
        f"package {name}", got=str(error), expected="it to be installed", do=f"pip install '{name}'"
    )
