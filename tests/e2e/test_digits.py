"""The main job on real input: every strategy, chunk and number of workers against float64."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call, jacrev, vmap

from jacjobs.api import submit_job
from jacjobs.job import Job, job_from_spec
from jacjobs.jobspec import read_job
from tests.conftest import JOBS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
WHOLE = 17970


@pytest.fixture(scope="module")
def job() -> Job:
    path = JOBS / "digits.yaml"
    return job_from_spec(read_job(path, []), path.parent)


@pytest.fixture(scope="module")
def oracle(job: Job) -> np.ndarray:
    """vmap(jacrev) in float64, of the same weights."""
    module = sys.modules["jacjobs_job_digits"]
    images, network = module.load(None)
    weights = {name: w.double() for name, w in network.named_parameters()}

    def logits(image: torch.Tensor) -> torch.Tensor:
        return functional_call(network, weights, (image[None, None],))[0]

    return vmap(jacrev(logits))(images.double()).flatten(2).numpy()


def parts(path: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in path.glob("part-*.parquet")}


@pytest.mark.parametrize(
    ("strategy", "chunk"),
    [("vjp/loop", 1), *((s, c) for s in ("vjp/repeat", "vjp/vmap") for c in (1, 7, 64, WHOLE))],
)
def test_equals_float64_and_does_not_depend_on_workers(
    job: Job, oracle: np.ndarray, strategy: str, chunk: int, tmp_path: Path
) -> None:
    for workers in (1, 2):
        place = changed(job, tmp_path / str(workers), workers, strategy=strategy, chunk=chunk)
        J = submit_job(place).result()
        error = np.abs(J.to_numpy() - oracle).max() / np.abs(oracle).max()
        assert error < 32 * np.finfo(np.float32).eps, error
    assert parts(tmp_path / "1") == parts(tmp_path / "2")


def test_ray_data_reads_a_dataset(job: Job, oracle: np.ndarray, tmp_path: Path) -> None:
    J = submit_job(changed(job, tmp_path / "run", 2)).result()
    dataset = J.ray().filter(lambda record: record["point"] == 7)
    rows = sorted(dataset.take_all(), key=lambda record: record["row"])
    np.testing.assert_array_equal(np.stack([record["values"] for record in rows]), J[7])
    np.testing.assert_allclose(J[7], oracle[7], rtol=1e-3, atol=1e-4)


def changed(job: Job, path: Path, workers: int, **compute: Any) -> Job:
    return dataclasses.replace(
        job,
        output=job.output.model_copy(update={"path": str(path)}),
        compute=job.compute.model_copy(update=compute),
        cluster=job.cluster.model_copy(update={"workers": workers}),
    )
