"""Datasets as strangers may send them: whoever forges one writes its digests too, so all is signed again."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

import jacjobs
from jacjobs.cli.app import main
from jacjobs.errors import JacjobsError
from jacjobs.shape import JacobianShape, Structure, segments_of
from jacjobs.store.folder import MANIFEST, PLAN, RunFolder
from jacjobs.store.writer import describe
from tests.store.datasets import Form, write_dataset

SHAPE = JacobianShape(
    points=2,
    rows=4,
    columns=6,
    dtype="float32",
    outputs=segments_of([("y", (4,))]),
    inputs=segments_of([("a", (2,)), ("b", (2, 2))]),
    structure=Structure(outputs=0, inputs={"dict": [0, 1], "keys": ["a", "b"]}, has_points=True),
)
ENTRIES = np.arange(48, dtype=np.float32).reshape(2, 4, 6)
SECONDS = 10.0
"""More than any refusal takes, on a busy machine too."""

JSON = dict[str, Any]


def small_run(path: Path, form: Form | None = None) -> Path:
    write_dataset(path, SHAPE, ENTRIES, form or Form(), run="0123")
    return path


def signed(content: Any) -> bytes:
    """As jacjobs writes it, with the digest of itself."""
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "digest"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        content["digest"] = xxhash.xxh3_128_hexdigest(text.encode())
    return (json.dumps(content, indent=2) + "\n").encode()


def forge(path: Path, change: Callable[[JSON, JSON], object]) -> None:
    """Change plan and manifest together, and sign both: the manifest knows the plan as it is now."""
    plan, manifest = (json.loads((path / name).read_bytes()) for name in (PLAN, MANIFEST))
    change(plan, manifest)
    (path / PLAN).write_bytes(signed(plan))
    manifest["plan"] = xxhash.xxh3_128_hexdigest((path / PLAN).read_bytes())
    (path / MANIFEST).write_bytes(signed(manifest))


def list_parts_again(path: Path) -> None:
    """Make the manifest agree with the parts that are there."""
    folder = RunFolder(path)
    there = [describe(folder.place, name).model_dump() for name in folder.part_names()]
    forge(path, lambda plan, manifest: manifest.update(parts=there))


def both(key: str, value: Any) -> Callable[[JSON, JSON], None]:
    """The same in the shape of the plan and in that of the manifest."""

    def change(plan: JSON, manifest: JSON) -> None:
        for content in (plan, manifest):
            content["shape"][key] = value

    return change


def in_plan(key: str, value: Any) -> Callable[[JSON, JSON], None]:
    return lambda plan, manifest: plan.update({key: value})


def in_manifest(key: str, value: Any) -> Callable[[JSON, JSON], None]:
    return lambda plan, manifest: manifest.update({key: value})


# -- reading -------------------------------------------------------------------------------------------------

READS: dict[str, Callable[[Any], Any]] = {
    "summary": lambda J: J.summary(),
    "to_numpy": lambda J: J.to_numpy(),
    "point": lambda J: J[0],
    "segment": lambda J: J[:, :, J.inputs[-1].name] if J.inputs else None,
    "array": lambda J: J[[0, -1], 0],
    "matmul": lambda J: J @ np.ones(6, np.float32),
    "rmatmul": lambda J: np.ones(4, np.float32) @ J,
    "gram": lambda J: J.gram(),
    "normal": lambda J: J.normal(),
    "tree": lambda J: J.tree(),
    "dataset": lambda J: J.dataset().to_table(),
}


def check_sentence(error: JacjobsError) -> str:
    message = str(error)
    assert message.strip()
    assert "\n" not in message, message
    assert len(message) < 2000, message
    return message


def refusals(path: Path) -> dict[str, str]:
    """What opening says, or each way to read; every error is one of ours, in a sentence. Empty: all is well.

    `verify` agrees.
    """
    said: dict[str, str] = {}
    try:
        J = jacjobs.open(path)
    except JacjobsError as error:
        said["open"] = check_sentence(error)
    else:
        for name, read in READS.items():
            try:
                read(J)
            except JacjobsError as error:
                said[name] = check_sentence(error)
            except (ValueError, MemoryError) as error:
                # The question does not fit a J of another shape; or Arrow reads by itself, and says so.
                assert J.shape != ENTRIES.shape or name == "dataset", name
                said[name] = str(error)
    verdict = jacjobs.verify(path)
    assert verdict.sound == (not said), (said, verdict)
    return said


@contextmanager
def bounded(seconds: float = SECONDS, mib: int = 200) -> Iterator[None]:
    """Neither long nor large."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert time.monotonic() - began < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < mib << 10


def said_by(read: Callable[[], object]) -> str:
    """The sentence that it ends with, nothing if all is well."""
    try:
        read()
    except JacjobsError as error:
        return check_sentence(error)
    return ""


GOOD = """
import torch
from jacjobs import Problem
def build(): return Problem(torch.sin, (torch.ones(4, 3),), in_dims=0)
"""
EVIL = """
from pathlib import Path
(Path(__file__).parent / "executed").touch()
raise SystemExit("this was not to be imported")
"""
JOB = "name: a\nproblem: p.py:build\noutput: {path: run}\ncluster: {address: inline}\n"


class Payload:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self.marker), 0o777, True)


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jacjobs", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    code = caught.value.code
    assert isinstance(code, int)
    return code
