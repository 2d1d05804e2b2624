"""Files that are visible only when they are complete.

A file is written under a name of its own, flushed to the disk, and renamed to its final name in one step;
then the folder is flushed, so that the name survives a power loss too. Renaming in this way is atomic on
every POSIX file system (https://pubs.opengroup.org/onlinepubs/9699919799/functions/rename.html).
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jacjobs.errors import StoreError


class PendingFile:
    """A file on its way: write to `path`, then `commit()` or `discard()`."""

    def __init__(self, final: Path, scratch: Path) -> None:
        self.final = final
        self.path = scratch / f"{final.name}.{uuid.uuid4().hex}"

    def commit(self) -> None:
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(self.final)
        flush_folder(self.final.parent)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


def write_text(final: Path, text: str, scratch: Path) -> None:
    """Replace `final` by `text`, completely or not at all."""
    pending = PendingFile(final, scratch)
    with storing(final):
        try:
            pending.path.write_text(text, encoding="utf-8")
            pending.commit()
        except BaseException:
            pending.discard()
            raise


def flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storing(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn the operating system's errors into a sentence with the path, the bytes needed and those free."""
    try:
        yield
    except OSError as error:
        raise StoreError(_sentence(error, path, needed_bytes)) from error


def _sentence(error: OSError, path: Path, needed_bytes: int | None) -> str:
    what = f"cannot write {path}: {error.strerror or error}"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return what
    needed = f"{needed_bytes:,} bytes needed, " if needed_bytes is not None else ""
    try:
        free = f"{shutil.disk_usage(path.parent).free:,} bytes free"
    except OSError:
        free = "free space unknown"
    return f"{what} ({needed}{free}); make room, then `jacjobs resume`"
