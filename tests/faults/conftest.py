"""The table that the fault tests fill in, and a run that a stranger sends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.forging import EVIL, GOOD, JOB, cli
from tests.faults.table import FaultTable, Row, normalised

_TABLE = pytest.StashKey[FaultTable]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = FaultTable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.stash[_TABLE].writes:
        session.config.stash[_TABLE].write()


@pytest.fixture
def row(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """Call it with what goes into this test's row; `run`: the path of the run, if it is not the job's."""

    def record(
        event: str, *, caused_by: str, happens: str, code: int, says: str, run: Path | None = None
    ) -> None:
        said = normalised(says, run or tmp_path / "run")
        test = f"{request.path.name}::{request.node.originalname}"
        request.config.stash[_TABLE].record(Row(event, caused_by, happens, code, said, test))

    return record


@pytest.fixture
def strangers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of a job whose problem file is evil by now."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.py").write_text(GOOD)
    (tmp_path / "job.yaml").write_text(JOB)
    assert cli(monkeypatch, "submit", "job.yaml") == 0
    (tmp_path / "p.py").write_text(EVIL)
    return tmp_path / "run"
