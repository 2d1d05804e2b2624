"""Shared: one local Ray a session, and functions with known Jacobians."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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


@pytest.fixture(autouse=True)
def same_randomness() -> None:
    torch.manual_seed(0)
