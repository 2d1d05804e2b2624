"""Whatever is wrong with a job: one sentence, the right exit code, no traceback of ours, nothing written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jacjobs.cli.app import main

PROBLEM = """
import torch
from jacjobs import Problem
X = torch.ones(4, 3)
def good(): return Problem(torch.sin, (X,), in_dims=0)
def raises(): return Problem(raising, (X,), in_dims=0)
def raising(x): raise ValueError("boom")
def fails(): raise KeyError("nothing here")
def wrong_in_dims(): return Problem(torch.sin, (X,), in_dims=5)
def integers(): return Problem(torch.sin, (X.int(),))
def boolean(): return Problem(lambda x: x > 0, (X,))
def detached(): return Problem(lambda x: x.detach(), (X,))
def nothing(): return None
def empty(): return Problem(torch.sin, (X[:0],), in_dims=0)
THING = 3
"""

# what is changed in a good job, exit code, what the sentence must say
CASES = {
    "job file missing": ("nofile", 2, "no such file"),
    "job file is a folder": ("folder", 2, "a folder"),
    "not YAML": ("text:[", 2, "is not YAML"),
    "not a mapping": ("text:- 1", 2, "got list, expected a mapping"),
    "unknown key": ("set:compute.chunks=3", 2, "unknown key 'compute.chunks'; did you mean 'chunk'?"),
    "unknown section": ("set:computer.chunk=3", 2, "unknown key 'computer'; did you mean 'compute'?"),
    "missing key": ("text:name: a\noutput: {path: x}", 2, "'problem' is missing"),
    "chunk 0": ("set:compute.chunk=0", 2, "compute.chunk: got 0, expected 'auto' or greater than"),
    "chunk of words": ("set:compute.chunk=many", 2, "compute.chunk: got 'many'"),
    "unknown strategy": ("set:compute.strategy=vjp/magic", 2, "compute.strategy: got 'vjp/magic'"),
    "unknown compression": ("set:output.compression=rar", 2, "output.compression: got 'rar'"),
    "--set without a value": ("set:compute.chunk", 2, "expected key=value"),
    "problem file missing": ("set:problem=q.py:good", 2, "q.py, which does not exist"),
    "problem not found": ("set:problem=p.py:goood", 2, "did you mean 'good'?"),
    "problem is no function": ("set:problem=p.py:THING", 2, "no callable 'THING'"),
    "problem without a name": ("set:problem=p.py", 2, "problem: got 'p.py'"),
    "module missing": ("set:problem=nowhere_at_all:f", 2, "no module named 'nowhere_at_all'"),
    "returns no problem": ("set:problem=p.py:nothing", 2, "got a NoneType, expected a jacjobs.Problem"),
    "unknown parameter": (
        "set:params.size=3",
        2,
        "params: got size (got an unexpected keyword argument 'size')",
    ),
    "key of a section": ("set:chunk=3", 2, "unknown key 'chunk'; did you mean 'compute.chunk'?"),
    "builder raises": ("set:problem=p.py:fails", 3, "KeyError: 'nothing here'"),
    "function raises": ("set:problem=p.py:raises", 3, "ValueError: boom"),
    "wrong in_dims": ("set:problem=p.py:wrong_in_dims", 2, "in_dims=5: got shape (4, 3)"),
    "integer input": ("set:problem=p.py:integers", 2, "got torch.int32"),
    "boolean output": ("set:problem=p.py:boolean", 2, "got torch.bool"),
    "detached output": ("set:problem=p.py:detached", 2, "none that depends differentiably"),
    "no points": ("set:problem=p.py:empty", 2, "an axis of size 0"),
    "output under a file": ("set:output.path=p.py/run", 2, "a file, expected a folder"),
    "output in use": ("set:output.path=full", 2, "a folder with other things in it"),
    "output not writable": ("set:output.path=/proc/jacjobs", 2, "cannot write /proc/jacjobs"),
    "address without a cluster": ("set:cluster.address=127.0.0.1:1", 2, "cluster.address: got '127.0.0.1:1'"),
    "a relative output elsewhere": (
        "set:cluster.address=http://127.0.0.1:1",
        2,
        "'out/run', which is relative",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_nothing_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, code, sentence = CASES[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (tmp_path / "p.py").write_text(PROBLEM)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    job = tmp_path / "job.yaml"
    job.write_text("name: wrong\nproblem: p.py:good\noutput: {path: out/run}\ncluster: {address: inline}\n")
    arguments = [str(job)]
    kind, _, value = change.partition(":")
    if kind == "nofile":
        arguments = ["none.yaml"]
    elif kind == "folder":
        arguments = ["full"]
    elif kind == "text":
        job.write_text(value)
    else:
        arguments += ["--set", value]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["jacjobs", "submit", *arguments])

    with pytest.raises(SystemExit) as caught:
        main()

    printed = capsys.readouterr().err
    last = printed.strip().splitlines()[-1]
    assert caught.value.code == code
    assert sentence in last
    assert last.startswith("jacjobs: ")
    if code == 2:
        assert printed.strip() == last, "one sentence, nothing else"
    else:
        assert "p.py" in next(line for line in printed.splitlines() if line.startswith("  File"))
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in str(p)) == before


@pytest.mark.parametrize("command", ["resume", "show"])
def test_what_is_no_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["jacjobs", command, str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "expected the folder of a run" in capsys.readouterr().err
