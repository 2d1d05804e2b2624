"""What an assembler leaves behind when it cannot write, or is told to end."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from jacjobs.errors import StoreError
from jacjobs.planning.geometry import Tiling
from jacjobs.run.assembler import Assembler
from jacjobs.run.messages import BlockId
from jacjobs.store.writer import PartWriter
from tests.store.datasets import METADATA, make_run, plan_of

BLOCK = np.ones((1, 4, 6))
TILING = Tiling(
    points=8,
    rows=4,
    columns=6,
    part_points=4,
    part_lines=4,
    block_points=1,
    block_rows=4,
    block_columns=6,
)


@pytest.fixture
def assembler(tmp_path: Path) -> Assembler:
    plan = plan_of(TILING, "float64")
    return Assembler(make_run(tmp_path, plan).uri, plan, METADATA)


def half_written(run: Path) -> list[Path]:
    return [*(run / "_jacjobs" / "scratch").glob("*")]


@pytest.mark.parametrize("position", [1, 3])
def test_a_block_that_comes_after_a_failed_write_opens_no_file(
    assembler: Assembler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    def full(*_: object) -> None:
        raise StoreError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "add", full)
        with pytest.raises(StoreError, match="no room"):
            assembler.absorb(BlockId(0, 0), BLOCK)
    assert assembler.absorb(BlockId(0, position), BLOCK) is None
    assert not half_written(tmp_path)
    assembler.absorb(BlockId(1, 0), BLOCK)
    assert len(half_written(tmp_path)) == 1, "other parts are as good as before"


def test_a_block_that_waited_while_its_bundle_was_given_up_is_dropped(
    assembler: Assembler, tmp_path: Path
) -> None:
    assembler.absorb(BlockId(0, 0), BLOCK)
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(assembler.absorb(BlockId(0, 1), BLOCK)))
    with assembler._bundles[0].lock:
        thread.start()
        thread.join(0.2)
        assembler.abandon(0)
    thread.join(60)
    assert done == [None]
    assert not half_written(tmp_path)


def test_one_that_was_closed_opens_no_file(assembler: Assembler, tmp_path: Path) -> None:
    assembler.absorb(BlockId(0, 0), BLOCK)
    assert len(half_written(tmp_path)) == 1
    assembler.close()
    assert assembler.absorb(BlockId(0, 1), BLOCK) is None
    assert assembler.absorb(BlockId(1, 0), BLOCK) is None
    assert not half_written(tmp_path)
