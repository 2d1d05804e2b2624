"""What the commands print, for people and for programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jacjobs.autodiff.catalogue import STRATEGIES
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
    table = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert table["check"] == ["a", "sample", "of", "points", "against", "jvp/vmap"]
    assert table["strategy"] == ["chunk", "memory", "time"], "the head of the table of candidates"
    candidates = [line.split() for line in lines if "/" in line.split(" ")[0]]
    assert len(candidates) == 9
    (chosen,) = [row for row in candidates if row[-1] == "chosen"]
    made = json.loads("".join(run(monkeypatch, capsys, "plan", str(job), "--json")))
    assert made["strategy"] == chosen[0]
    assert made["chunk"] == int(chosen[1])
    assert not (job.parent / "run").exists()


def test_a_plan_for_a_device_that_is_not_here(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run(monkeypatch, capsys, "plan", str(job), "--device", "H100", "--memory", "1GiB")
    assert lines[2].split(None, 1) == ["on", "1 worker, H100 80GB, 1.0 GiB each"]


def test_tune_leaves_a_table_and_a_picture(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run(monkeypatch, capsys, "tune", str(job), "--seconds", "1")
    assert lines[0].split() == ["strategy", "chunk", "a", "second", "memory", "predicted", "all", "of", "J"]
    table = (job.parent / "tune" / "tune.csv").read_text().splitlines()
    assert table[0].startswith("strategy,makes,chunk,products_a_second,entries_a_second,measured_bytes")
    rows = [line.split(",")[:3] for line in table[1:]]
    printed = [line.split()[:2] for line in lines[1 : 1 + len(rows)]]
    assert sorted([strategy, chunk] for strategy, _, chunk in rows) == sorted(printed)
    assert {strategy for strategy, _, _ in rows} == set(STRATEGIES)
    assert (job.parent / "tune" / "tune.png").read_bytes().startswith(b"\x89PNG")


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


def test_show_says_what_a_run_lacks(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, capsys, "submit", str(job), "--set", "output.dtype=float16")
    assert shown_as_table(monkeypatch, capsys)["J"].startswith("5 × 4 × 3 float16 (computed as float32)")
    (part,) = (job.parent / "run").glob("part-*")
    part.unlink()
    (job.parent / "run" / "_jacjobs" / "manifest.json").unlink()
    assert shown_as_table(monkeypatch, capsys)["missing"] == "points 0:5, rows 0:4, columns 0:3"


def shown_as_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return dict(line.split(None, 1) for line in run(monkeypatch, capsys, "show", "run"))


def test_verify_names_the_file_and_ends_with_1(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, capsys, "submit", str(job))
    assert run(monkeypatch, capsys, "verify", "run")[-1].startswith("sound: 1 part, ")
    against = run(monkeypatch, capsys, "verify", "run", "--against", str(job))
    assert against[-1].endswith("complete, J agrees with the job's products")
    (part,) = (job.parent / "run").glob("part-*")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["jacjobs", "verify", "run"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"FAULT  {part.name}: was changed since it was written")
    assert printed.splitlines()[-1].startswith("1 fault: 1 part")


def test_verify_compares_j_with_the_jobs_products(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part written by the same run, all digests right, and one entry wrong: only products can tell."""
    import jacjobs
    from jacjobs.planning.planner import Plan
    from jacjobs.run.assembler import Assembler
    from jacjobs.run.coordinator import part_metadata
    from jacjobs.run.messages import BlockId
    from jacjobs.store.folder import RunFolder
    from jacjobs.store.writer import describe

    run(monkeypatch, capsys, "submit", str(job))
    J = jacjobs.open("run")
    values, plan = J.to_numpy(), Plan.model_validate(J.record.plan)
    values[3, 2, 1] *= 1.05
    assembler = Assembler("run", plan, part_metadata(J.record))
    for position in range(plan.tiling.blocks_in(0)):
        block = plan.tiling.block(0, position)
        assembler.absorb(BlockId(0, position), values[block.point_start : block.point_stop])
    folder = RunFolder("run")
    manifest = J.manifest
    assert manifest is not None
    parts = tuple(describe(folder.place, name) for name in folder.part_names())
    folder.write_manifest(manifest.model_copy(update={"parts": parts}))
    assert run(monkeypatch, capsys, "verify", "run")[-1].startswith("sound")
    monkeypatch.setattr(sys, "argv", ["jacjobs", "verify", "run", "--against", str(job)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert "points 3:4" in capsys.readouterr().out
