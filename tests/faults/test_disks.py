"""Disks that are full, gone or read-only in mid-run: file systems of their own, in a mount namespace."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.job import BLOCK_BYTES, ROOT, Ending, TroubledJob, ending, parts, wait_for

Record = Callable[..., None]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
DISK_BYTES = 32 * BLOCK_BYTES


class Disk:
    """A small file system at `path`, for the commands that run beside it, and for nobody else.

    It is mounted twice, so that it outlives `unmount`.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk"
        self._kept = folder / "kept"
        for made in (self.path, self._kept):
            made.mkdir()
        mount = f"mount -t tmpfs -o size={DISK_BYTES} none {self._kept} && {self._mount} && echo ready"
        self._holder = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"{mount} && exec sleep 600"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if "ready" not in self._holder.stdout.readline():
            _, said = self._holder.communicate()
            pytest.skip(f"a file system cannot be mounted here: {said.strip()}")

    @property
    def _mount(self) -> str:
        return f"mount --bind {self._kept} {self.path}"

    def beside(self, command: list[str]) -> list[str]:
        """The command, where the disk can be seen."""
        return ["nsenter", f"--target={self._holder.pid}", "--mount", f"--wd={ROOT}", "--", *command]

    def seen(self, path: Path) -> Path:
        """A path on the disk, as this process finds it, whether it is mounted or not."""
        return Path(f"/proc/{self._holder.pid}/root{self._kept}") / path.relative_to(self.path)

    def fill(self) -> None:
        with self.seen(self.path / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(BLOCK_BYTES)):
                    pass
            except OSError:
                pass

    def make_room(self) -> None:
        self.seen(self.path / "filler").unlink()

    def unmount(self) -> None:
        self._run(f"umount -l {self.path}")

    def mount_again(self) -> None:
        self._run(self._mount)

    def set_read_only(self, answer: bool) -> None:
        self._run(f"mount -o remount,bind,{'ro' if answer else 'rw'} {self.path}")

    def _run(self, command: str) -> None:
        subprocess.run(self.beside(["sh", "-c", command]), check=True)

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.close()


def run(
    job: TroubledJob, disk: Disk, address: str, trouble_point: int, happens: Callable[[], None]
) -> Ending:
    """Submit the job to the disk; when it holds at a point, let something happen, and see how it ends."""
    job.trouble(trouble_point, "hold")
    out = disk.path / "run"
    process = job.start(
        disk.beside(job.command("submit", str(job.file), "--out", str(out), "--address", address))
    )
    job.wait_until_met(trouble_point)
    wait_for(lambda: len(parts(disk.seen(out))) == trouble_point // 4)
    happens()
    job.calm(trouble_point)
    return ending(process)


def resume(job: TroubledJob, disk: Disk) -> None:
    """When the cause is gone: what is missing is made, and is the same as ever."""
    job.out = disk.seen(disk.path / "run")
    job.check_resumed()


def check_clean(disk: Disk, committed: int) -> None:
    """Only whole parts are there, nothing half written, and no lock."""
    run = disk.seen(disk.path / "run")
    assert len(parts(run)) == committed
    assert {path.name for path in run.iterdir()} == {"_jacjobs", *parts(run)}
    assert not list((run / "_jacjobs" / "scratch").iterdir())
    assert not (run / "_jacjobs" / "lock.json").exists()


@pytest.mark.parametrize("address", ["inline", "local"])
def test_the_disk_fills(job: TroubledJob, disk: Disk, row: Record, address: str) -> None:
    ended = run(job, disk, address, 6, disk.fill)
    assert ended.code == 1, ended
    assert f"cannot write {disk.path}/run/part-" in ended.says
    assert f"{4 * BLOCK_BYTES:,} bytes needed, " in ended.says
    assert "bytes free" in ended.says
    assert "Traceback" not in ended.errors
    check_clean(disk, committed=1)
    disk.make_room()
    resume(job, disk)
    row(
        "The disk fills",
        caused_by="a file system of 32 MiB that another program fills",
        happens="The run stops; no part is half there.",
        code=ended.code,
        says=ended.says,
        run=disk.path / "run",
    )


def test_a_mount_goes_away(job: TroubledJob, disk: Disk, row: Record) -> None:
    ended = run(job, disk, "inline", 6, disk.unmount)
    assert ended.code == 1, ended
    assert "Traceback" not in ended.errors
    assert not list(disk.path.iterdir()), "nothing is left where the mount was"
    disk.mount_again()
    assert len(parts(disk.seen(disk.path / "run"))) == 1
    resume(job, disk)
    row(
        "A mount goes away",
        caused_by="`umount -l`, with a part half written",
        happens="The run stops, and writes nothing to the folder where the mount was.",
        code=ended.code,
        says=ended.says,
        run=disk.path / "run",
    )


def test_a_disk_becomes_read_only(job: TroubledJob, disk: Disk, row: Record) -> None:
    ended = run(job, disk, "inline", 8, lambda: disk.set_read_only(True))
    assert ended.code == 1, ended
    assert f"cannot write {disk.path}/run/part-" in ended.says, "what came first, not what followed"
    assert "Traceback" not in ended.errors
    assert len(parts(disk.seen(disk.path / "run"))) == 2
    disk.set_read_only(False)
    resume(job, disk)
    row(
        "A disk becomes read-only",
        caused_by="`mount -o remount,ro`, as Linux does after an error of the disk",
        happens="The run stops.",
        code=ended.code,
        says=ended.says,
        run=disk.path / "run",
    )


def test_a_folder_is_denied(job: TroubledJob, row: Record) -> None:
    """In the middle of a part, so that what was written of it cannot even be removed."""
    scratch = job.out / "_jacjobs" / "scratch"
    job.trouble(6, "hold")
    process = job.start(job.command("submit", str(job.file), "--address", "inline"))
    job.wait_until_met(6)
    wait_for(lambda: list(scratch.iterdir()))
    if subprocess.run(["chattr", "+i", scratch], capture_output=True).returncode:
        pytest.skip("a folder cannot be denied to this user here: chattr +i fails")
    try:
        job.calm(6)
        ended = ending(process)
    finally:
        subprocess.run(["chattr", "-i", scratch], check=True)
    assert ended.code == 1, ended
    assert f"cannot write {job.out}/part-" in ended.says
    assert "Traceback" not in ended.errors
    assert len(parts(job.out)) == 1
    job.check_resumed()
    assert not list(scratch.iterdir())
    row(
        "Writing is denied",
        caused_by="`chattr +i` of the folder in which a part is half written",
        happens="The run stops; the next one clears up.",
        code=ended.code,
        says=ended.says,
    )
