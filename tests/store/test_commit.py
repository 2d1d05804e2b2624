"""Commits that a crash cannot spoil, and locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jacjobs.errors import InputError
from jacjobs.store.lock import RunLock
from jacjobs.store.place import LocalFolder

WRITE_FOR_EVER = """
import itertools, sys
from pathlib import Path
from jacjobs.store.place import LocalFolder
final = Path(sys.argv[1])
place = LocalFolder(final)
place.prepare()
for i in itertools.count():
    text = str(i % 10) * 200_000
    if sys.argv[2] == "naive":
        (final / f"{i % 7}.txt").write_text(text)
    else:
        place.write(f"{i % 7}.txt", text.encode())
    if i == 7: print("ready", flush=True)
"""


def torn_files(folder: Path, how: str, kills: int) -> int:
    """Kill a writer again and again; count files that are visible and not complete."""
    final = folder / how
    final.mkdir(parents=True)
    torn = 0
    for kill in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(final), how], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * kill)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        contents = [path.read_text() for path in final.glob("*.txt")]
        torn += sum(len(text) != 200_000 or len(set(text)) != 1 for text in contents)
    return torn


def test_a_killed_writer_leaves_no_torn_file(tmp_path: Path) -> None:
    """And the test can fail: the naive way does leave some."""
    assert torn_files(tmp_path, "committed", 12) == 0
    assert torn_files(tmp_path, "naive", 40) > 0


def test_lock_is_exclusive_and_taken_over_from_the_dead(tmp_path: Path) -> None:
    place = LocalFolder(tmp_path)
    place.prepare()
    holder = RunLock(place)
    holder.acquire()
    with pytest.raises(InputError, match=f"process {os.getpid()}"):
        RunLock(place).acquire(patience_seconds=0.3)
    holder.release()
    code = (
        "from pathlib import Path; from jacjobs.store.lock import RunLock; "
        "from jacjobs.store.place import LocalFolder; "
        f"RunLock(LocalFolder(Path({str(tmp_path)!r}))).acquire()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "_jacjobs" / "lock.json").exists()
    RunLock(place).acquire(patience_seconds=1)
