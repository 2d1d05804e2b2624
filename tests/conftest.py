"""Shared: one local Ray a session, and functions with known Jacobians."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jacjobs.planning import geometry
from tests.faults.job import PART_BYTES, TroubledJob

JOBS = Path(__file__).parent.parent / "jobs"

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_DEDUP_LOGS"] = "0"


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Ray, once for the whole session; `session()` finds it and leaves it as it is."""
    import ray

    with tempfile.TemporaryDirectory(prefix="jj", dir="/tmp") as folder:
        ray.init(
            address="local",
            num_cpus=4,
            object_store_memory=512 << 20,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        yield
        ray.shutdown()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TroubledJob]:
    """One that meets trouble, cut into parts of four blocks. What it started is ended."""
    monkeypatch.setattr(geometry, "SMALLEST_PART_BYTES", PART_BYTES)
    troubled = TroubledJob(tmp_path)
    yield troubled
    troubled.end()


@pytest.fixture(autouse=True)
def same_randomness() -> None:
    torch.manual_seed(0)
