"""How large a dataset is going to be, beside how large it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import jacjobs


@pytest.mark.parametrize(("points", "rows", "columns"), [(20_000, 2, 6), (500, 10, 640), (2, 50, 20_000)])
def test_the_dataset_is_as_large_as_predicted(points: int, rows: int, columns: int, tmp_path: Path) -> None:
    """Without compression, within 3%; of narrow rows, what says which row it is takes as much as the row."""
    weights = torch.randn(rows, columns)
    problem = jacjobs.Problem(lambda x: torch.tanh(weights @ x), (torch.randn(points, columns),), in_dims=0)
    run = jacjobs.submit(problem, tmp_path / "run", address="inline", compression="none", strategy="vjp/vmap")
    manifest = run.wait()
    written = sum(part.bytes for part in manifest.parts)
    assert run.plan.disk_bytes == pytest.approx(written, rel=0.03)
