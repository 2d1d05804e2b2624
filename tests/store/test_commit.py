"""Commits that a crash cannot spoil, and locks."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jacjobs.errors import InputError
from jacjobs.store import commit
from jacjobs.store.commit import BUFFER_BYTES, DirectFile
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


@pytest.fixture
def place(tmp_path: Path) -> LocalFolder:
    place = LocalFolder(tmp_path / "run")
    place.path.mkdir()
    place.prepare()
    return place


def bytes_of(count: int) -> bytes:
    return np.random.default_rng(count).bytes(count)


SIZES = [0, 1, 4096, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 3 * BUFFER_BYTES + 4097]


def write_large(place: LocalFolder, data: bytes, *, cached: bool = False, step: int = 1_000_003) -> None:
    pending = place.pending("a", cached=cached)
    for start in range(0, len(data), step):
        pending.write(memoryview(data)[start : start + step])
    pending.commit()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cached", [True, False])
def test_a_file_holds_what_was_written(place: LocalFolder, size: int, cached: bool) -> None:
    data = bytes_of(size)
    write_large(place, data, cached=cached)
    assert place.read("a") == data
    assert place.files() == {"a": size}


def test_where_no_direct_writes_are_to_be_had(place: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that says so at once, and one that says so when it is written to."""
    data = bytes_of(3 * BUFFER_BYTES + 5)
    settings, write = fcntl.fcntl, os.write
    direct: list[int] = []

    def refused(descriptor: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "refused")
        return settings(descriptor, command, flags)

    def fails(descriptor: int, data: bytes) -> int:
        if settings(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            direct.append(len(data))
            raise OSError(errno.EINVAL, "blocks of 64 KiB only")
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(commit.fcntl, "fcntl", refused)
        write_large(place, data)
    assert place.read("a") == data
    with monkeypatch.context() as patch:
        patch.setattr(commit.os, "write", fails)
        write_large(place, data[:-1])
    assert place.read("a") == data[:-1]
    assert len(direct) <= 1


def test_writes_that_are_cut_short_go_on(place: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    data = bytes_of(2 * BUFFER_BYTES + 11)
    with monkeypatch.context() as patch:
        patch.setattr(commit.os, "write", lambda descriptor, data: write(descriptor, data[: 1 << 20]))
        write_large(place, data)
    assert place.read("a") == data


def test_other_errors_are_the_callers(place: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    pending = place.pending("a", cached=False)
    with monkeypatch.context() as patch:
        patch.setattr(commit.os, "write", full)
        with pytest.raises(OSError, match="full"):
            pending.write(bytes_of(BUFFER_BYTES))
    pending.discard()
    assert place.files() == place.files("_jacjobs/scratch") == {}


def cached_share(path: Path) -> float:
    """Of a file's pages, those in the system's cache (mincore)."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        there = (ctypes.c_ubyte * pages)()
        view = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(len(mapped)), there)
        del view
        assert done == 0
    return sum(page & 1 for page in there) / pages


def test_large_files_stay_out_of_the_cache(place: LocalFolder) -> None:
    probe = DirectFile(place.path / "probe")
    direct = probe._direct
    probe.close()
    if not direct:
        pytest.skip("this file system has no direct writes")
    data = bytes_of(3 * BUFFER_BYTES + 5)
    write_large(place, data, cached=True)
    assert cached_share(place.path / "a") > 0.9
    write_large(place, data)
    assert cached_share(place.path / "a") < 0.1


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
