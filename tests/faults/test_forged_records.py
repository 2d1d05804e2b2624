"""Forged plans, manifests and locks, and sizes that are only claimed: refused in a sentence, in bounded time
and memory; and what reaches the terminal is text.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jacjobs
from jacjobs.store.folder import MANIFEST, PLAN, RunFolder
from jacjobs.store.schema import part_name, part_rectangle
from tests.faults.forging import (
    GOOD,
    JSON,
    READS,
    both,
    bounded,
    cli,
    forge,
    in_manifest,
    in_plan,
    list_parts_again,
    refusals,
    small_run,
)
from tests.store.datasets import Form

DEEP: Any = json.loads("[" * 400 + "]" * 400)
SEGMENT = {"name": "a", "start": 0, "stop": 6, "shape": [6]}
IMPLAUSIBLE: dict[str, tuple[Callable[[JSON, JSON], object], str]] = {
    "points 10**18": (both("points", 10**18), "is no shape that J can have"),
    "points 10**400": (both("points", 10**400), "is no shape that J can have"),
    "no points": (both("points", 0), "is no shape that J can have"),
    "rows -1": (both("rows", -1), "is no shape that J can have"),
    "points NaN": (both("points", float("nan")), "finite number"),
    "points infinite": (both("points", float("inf")), "finite number"),
    "points a list": (both("points", [2]), "valid integer"),
    "dtype object": (both("dtype", "object"), "dtype is 'object'"),
    "dtype of length": (both("dtype", "S1000000000"), "dtype is"),
    "columns unlike segments": (both("columns", 7), "inputs do not lie end to end"),
    "segment from -5": (both("inputs", [{**SEGMENT, "start": -5}]), "inputs do not lie end to end"),
    "segment to 10**18": (both("inputs", [{**SEGMENT, "stop": 10**18}]), "inputs do not lie end to end"),
    "segment of another shape": (both("inputs", [{**SEGMENT, "shape": [7]}]), "inputs do not lie"),
    "segment of negative shape": (both("inputs", [{**SEGMENT, "shape": [-2, -3]}]), "inputs do not lie"),
    "segment of a large product": (both("inputs", [{**SEGMENT, "shape": [2**63] * 10_000}]), "do not lie"),
    "leaf that is no segment": (
        both("structure", {"outputs": 0, "inputs": 5, "has_points": True}),
        "structure is no tree",
    ),
    "node of no kind": (
        both("structure", {"outputs": {"set": [0]}, "inputs": 0, "has_points": True}),
        "structure is no tree",
    ),
    "no axis of points for two": (
        both("structure", {"outputs": 0, "inputs": 0, "has_points": False}),
        "structure is no tree",
    ),
    "keys too few": (
        both("structure", {"outputs": 0, "inputs": {"dict": [0, 1], "keys": []}, "has_points": True}),
        "structure is no tree",
    ),
    "keys that are lists": (
        both("structure", {"outputs": 0, "inputs": {"dict": [0], "keys": [[]]}, "has_points": True}),
        "structure is no tree",
    ),
    "stripe 0": (in_plan("stripe", 0), "'stripe'"),
    "stripe -1": (in_plan("stripe", -1), "'stripe'"),
    "stripe 10**400": (in_plan("stripe", 10**400), "'stripe'"),
    "layout of nothing": (in_plan("layout", "diagonals"), "'layout'"),
    "format of later": (in_plan("format", 2), "upgrade it"),
    "format in words": (in_plan("format", "2"), "'format'"),
    "format 0": (in_plan("format", 0), "'format'"),
    "plan empty": (in_plan("plan", {}), "'plan.strategy'"),
    "chunk in words": (
        in_plan("plan", {"strategy": "x", "chunk": "y", "compression": "none"}),
        "'plan.chunk'",
    ),
    "job of numbers": (in_plan("job", {"spec": 1, "folder": 2}), "'job.spec'"),
    "job without output": (in_plan("job", {"spec": {"cluster": {}}, "folder": "x"}), "'job.spec.output'"),
    "options nested 400 deep": (in_plan("options", {"x": DEEP}), "levels"),
    "checks without numbers": (in_manifest("checks", {"by": "jvp/loop"}), "'checks'"),
    "checks of words": (in_manifest("checks", {"by": "jvp/loop", "points": "x"}), "'checks.points'"),
    "timings of words": (in_manifest("timings", {"seconds": "x"}), "'timings.seconds'"),
    "timings 10**400": (in_manifest("timings", {"seconds": 10**400}), "'timings.seconds'"),
    "parts of numbers": (in_manifest("parts", [1, 2]), "'parts.0'"),
    "no parts": (in_manifest("parts", []), "lists no part with points 0:2"),
    "manifest of another run": (in_manifest("run", "4567"), "is not that of its plan"),
    "manifest of another shape": (
        lambda plan, manifest: manifest["shape"].update(dtype="float64"),
        "is not that of its plan",
    ),
}


@pytest.mark.parametrize("case", IMPLAUSIBLE)
def test_what_no_run_has_is_refused_when_it_is_opened(case: str, tmp_path: Path) -> None:
    change, sentence = IMPLAUSIBLE[case]
    path = small_run(tmp_path / "run")
    forge(path, change)
    with bounded():
        assert sentence in refusals(path)["open"]


@pytest.mark.parametrize("name", [PLAN, MANIFEST])
@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"9" * 100_000,
        b'{"points": ' + b"9" * 100_000 + b"}",
        b"\xff\xfe" * 10,
        b"\xef\xbb\xbf{}",
        b"\0" * 1000,
        b"",
        b"null",
        b'"text"',
        b'{"digest": null}',
        b"{}" * 10,
    ],
    ids=lambda raw: raw[:8].hex(),
)
def test_what_is_no_json_object_is_refused(raw: bytes, name: str, tmp_path: Path) -> None:
    path = small_run(tmp_path / "run")
    (path / name).write_bytes(raw)
    with bounded():
        assert name in refusals(path)["open"]


def test_nesting_that_a_pytree_may_have_is_read(tmp_path: Path) -> None:
    path = small_run(tmp_path / "run")
    forge(path, in_plan("options", {"x": json.loads("[" * 190 + "]" * 190)}))
    assert refusals(path) == {}


def in_frozen_plan(*steps: str, value: Any) -> Callable[[JSON, JSON], None]:
    def change(plan: JSON, manifest: JSON) -> None:
        section = plan["plan"]
        for step in steps[:-1]:
            section = section[step]
        section[steps[-1]] = value

    return change


FROZEN: dict[str, Callable[[JSON, JSON], None]] = {
    "parts of no points": in_frozen_plan("tiling", "part_points", value=0),
    "parts of no lines": in_frozen_plan("tiling", "part_lines", value=0),
    "blocks of fewer than none": in_frozen_plan("tiling", "block_rows", value=-1),
    "a tiling of another J": in_frozen_plan("tiling", "points", value=10**18),
    "another dtype": in_frozen_plan("shape", "dtype", value="object"),
    "another shape": in_frozen_plan("shape", "points", value=10**18),
    "another layout": in_frozen_plan("layout", value="columns"),
    "no resources": in_frozen_plan("resources", value=None),
}


@pytest.mark.parametrize("case", FROZEN)
def test_a_frozen_plan_of_something_else_is_refused(
    case: str, strangers_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(strangers_run, FROZEN[case])
    capsys.readouterr()
    for command in (["plan", "run"], ["plan", "run", "--json"], ["resume", "run"]):
        if command[0] == "resume":  # a problem that is as it was
            (strangers_run.parent / "p.py").write_text(GOOD)
        with bounded():
            assert cli(monkeypatch, *command) in (1, 2)
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("jacjobs: ")


def test_sizes_in_a_frozen_plan_that_no_float_holds_are_shown(
    strangers_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(strangers_run, in_frozen_plan("disk_bytes", value=10**400))
    assert cli(monkeypatch, "plan", "run") == 0


# -- sizes that are only claimed -----------------------------------------------------------------------------


def claim(path: Path, points: int) -> None:
    """The one part of a run claims to hold so many points, and the manifest knows it under that name."""
    (name,) = RunFolder(path).part_names()
    r = part_rectangle(name)
    assert r is not None
    new = part_name(r._replace(point_stop=points))
    (path / name).rename(path / new)

    def change(plan: JSON, manifest: JSON) -> None:
        both("points", points)(plan, manifest)
        manifest["parts"][0]["name"] = new

    forge(path, change)


@pytest.mark.parametrize("points", [10**6, 10**9, 10**12, 10**16])
@pytest.mark.parametrize("form", [Form(part_points=2), Form(part_points=2, stripe=1, layout="columns")])
def test_a_part_that_claims_points_which_it_does_not_hold_takes_no_memory_for_them(
    form: Form, points: int, tmp_path: Path
) -> None:
    path = small_run(tmp_path / "run", form)
    claim(path, points)
    with bounded(20):
        said = refusals(path)
    assert set(said) == set(READS)


def zigzag(number: int) -> bytes:
    """As Thrift's compact protocol writes integers."""
    number, made = number << 1, bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def claiming_records(part: Path, group: int, records: int, more: int) -> bytes:
    """The part, with footers in which one row group claims `records`, and all together `more` than before.

    The numbers are found by trying: which byte of the footer is the number of records?
    """
    raw = part.read_bytes()
    start = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    footer = raw[start:-8]

    def tried(change: Callable[[Any], int], old: int, new: int, content: bytes) -> bytes:
        for at in range(len(content)):
            if content[at] != zigzag(old)[0]:
                continue
            candidate = content[:at] + zigzag(new) + content[at + 1 :]
            try:
                found = change(pq.read_metadata(pa.BufferReader(whole(candidate))))
            except (OSError, ValueError, pa.ArrowException):
                continue
            if found == new:
                return candidate
        raise AssertionError("no such byte")

    def whole(content: bytes) -> bytes:
        return raw[:start] + content + len(content).to_bytes(4, "little") + b"PAR1"

    metadata = pq.read_metadata(part)
    total, one = metadata.num_rows, metadata.row_group(group).num_rows
    footer = tried(lambda m: int(m.row_group(group).num_rows), one, records, footer)
    footer = tried(lambda m: int(m.num_rows), total, total + more, footer)
    return whole(footer)


@pytest.mark.parametrize("stripe", [None, 1])
@pytest.mark.parametrize("points", [10**5, 10**12, 10**16])
def test_a_row_group_that_claims_records_takes_neither_memory_nor_time_for_them(
    points: int, stripe: int | None, tmp_path: Path
) -> None:
    """Everything agrees with the claim but the pages themselves: names, metadata, footers, digests."""
    path = small_run(tmp_path / "run", Form(part_points=2, stripe=stripe, group_records=4))
    (name,) = RunFolder(path).part_names()
    each = 4 * (6 if stripe else 1)
    more = (points - 2) * each
    raw = claiming_records(path / name, 0, 4 + more, more)
    claim(path, points)
    (name,) = (p.name for p in path.glob("part-*"))
    # The rectangle in the footer: its length is stored before it.
    old, new = (f"0,{p},0,4,0,6".encode() for p in (2, points))
    at = raw.index(old)
    raw = raw[: at - 1] + bytes([len(new)]) + new + raw[at + len(old) :]
    size = int.from_bytes(raw[-8:-4], "little") + len(new) - len(old)
    (path / name).write_bytes(raw[:-8] + size.to_bytes(4, "little") + b"PAR1")
    list_parts_again(path)
    with jacjobs.open(path)._parts.open(jacjobs.open(path)._parts.all[0]) as file:
        assert file.metadata.num_rows == points * each, "the forgery passes all that is said of it"
    with bounded(20):
        said = refusals(path)
    assert {"to_numpy", "point", "matmul", "gram", "summary"} <= set(said)


LOCKS: dict[str, bytes] = {
    "deep": b'{"pid":' * 100_000,
    "as deep as Python reads": b'{"pid":' + b"[" * 900 + b"]" * 900 + b"}",
    "no object": b"[1]",
    "not text": b"\xff\xfe",
    "a token that is a list": b'{"token": [], "host": {}, "pid": []}',
    "a process that there cannot be": b'{"host": "%s", "pid": %s}'
    % (os.uname().nodename.encode(), b"9" * 4000),
    "a process below": b'{"host": "%s", "pid": -1, "started": NaN}' % os.uname().nodename.encode(),
    "this very process": b'{"host": "%s", "pid": %d, "started": 1e999}'
    % (os.uname().nodename.encode(), os.getpid()),
}


@pytest.mark.parametrize("age", [0, 1000])
@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_that_nobody_of_ours_wrote_is_looked_at_without_harm(
    lock: str, age: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_run(tmp_path / "run")
    file = path / "_jacjobs/lock.json"
    file.write_bytes(LOCKS[lock])
    os.utime(file, (time.time() - age,) * 2)
    with bounded():
        assert cli(monkeypatch, "status", str(path)) == 0
    assert refusals(path) == {}


# -- what reaches the terminal -------------------------------------------------------------------------------

ATTEMPT = {
    **{"number": 1, "started": "", "host": "here", "pid": 1, "state": "failed", "cause": "", "seconds": 2.0},
    **{"blocks_done": 3, "blocks_total": 3},
}
ESCAPES = {
    "title": "\x1b]0;owned\x07",
    "colour": "\x1b[31mred",
    "eight bits": "\x9b31mred",
    "markup": "[bold red]x[/bold red][link=http://x]y[/link]",
    "emoji": ":bomb: :warning:",
    "return": "good\rbad",
    "line": "a\nentries  1 to 2",
    "right to left": "\u202egnp.exe",
    "surrogate": "\ud800",
}


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("place", ["segment", "name", "torch", "part", "origin", "lock", "attempt"])
def test_names_in_a_dataset_reach_the_terminal_as_text(
    place: str,
    escape: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = ESCAPES[escape]
    path = small_run(tmp_path / "run")

    def change(plan: JSON, manifest: JSON) -> None:
        match place:
            case "segment":
                both("inputs", [{**SEGMENT, "name": text}])(plan, manifest)
                both("structure", None)(plan, manifest)
            case "name":
                plan["name"] = manifest["name"] = text
            case "torch":
                plan["versions"]["torch"] = text
            case "origin":
                both("origin", text)(plan, manifest)
            case "part":
                manifest["parts"][0]["name"] = text
            case "lock":
                (path / "_jacjobs/lock.json").write_text(json.dumps({"host": text, "pid": text}))
            case "attempt":
                manifest["attempts"] = [{**ATTEMPT, "state": text, "cause": text}]

    forge(path, change)
    for command in ("show", "verify", "status"):
        for arguments in ([command, str(path)], [command, str(path), "--json"]):
            assert cli(monkeypatch, *arguments) in (0, 1)
            printed = "".join(capsys.readouterr())
            wrong = {c for c in printed if not (c.isprintable() or c == "\n")}
            assert not wrong, (arguments, wrong)
            assert "owned" not in printed.splitlines()
            assert not any(line.startswith("entries  1 to 2") for line in printed.splitlines())
            if escape in ("markup", "emoji") and place == "name" and arguments[0] == "show":
                assert text in printed
