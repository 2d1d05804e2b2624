"""What the commands print, for people and for programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jacjobs.cli.app import main

PROBLEM = """
import torch
from jacjobs import Problem
W = torch.linspace(-1, 1, 12).reshape(4, 3)
def build(points=5): return Problem(lambda x: torch.tanh(W @ x), (torch.ones(points, 3),), in_dims=0)
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.py").write_text(PROBLEM)
    job = tmp_path / "job.yaml"
    job.write_text("name: small\nproblem: p.py:build\noutput: {path: run}\ncluster: {address: inline}\n")
    return job


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["jacjobs", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [line.rstrip() for line in lines]
    return lines


def test_the_plan_names_every_candidate(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run(monkeypatch, capsys, "plan", str(job))
    assert lines[0].split(None, 1) == ["J", "5 × 4 × 3 float32 (points × rows × columns), 240 B"]
    table = dict(line.split(None, 1) for line in lines)
    assert table["check"] == "a sample of points against jvp/vmap"
    assert table["vjp/vmap"] == "works, chosen"
    assert sum("/" in name for name in table) == 9
    made = json.loads("".join(run(monkeypatch, capsys, "plan", str(job), "--json")))
    assert made["strategy"] == "vjp/vmap"
    assert not (job.parent / "run").exists()


def test_submit_and_show(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run(monkeypatch, capsys, "submit", str(job), "--set", "compute.check=all")
    assert lines[-2].startswith("complete: 1 part, ")
    assert lines[-1].startswith("5 points checked against jvp/vmap, worst relative error ")
    table = dict(line.split(None, 1) for line in run(monkeypatch, capsys, "show", "run"))
    assert table["J"] == "5 × 4 × 3 float32 (points × rows × columns)"
    assert table["check"] == lines[-1]
    shown = json.loads("".join(run(monkeypatch, capsys, "show", "run", "--json")))
    assert shown["checks"]["points"] == 5
    assert shown["shape"] == [5, 4, 3]
