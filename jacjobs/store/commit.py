"""Files that are visible only when they are complete.

On a file system, a file is written under a name of its own, flushed to the disk, and renamed to its final
name in one step; then the folder is flushed, so that the name survives a power loss too. Renaming in this way
is atomic on every POSIX file system (https://pubs.opengroup.org/onlinepubs/9699919799/functions/rename.html).

In an object store, a file is written to a local file without a name, and uploaded to its final key as a
whole: an object appears when its upload is completed, and a broken upload leaves nothing that can be seen.
Arrow completes an upload whenever its stream is closed, after an exception too, and by garbage collection; so
nothing may interrupt the writing to the stream.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import xxhash

from jacjobs.errors import StoreError

COPY_BYTES = 8 << 20


class PendingFile(ABC):
    """A file on its way: `write` to it, then `commit` or `discard`. It digests what it is given.

    As much of a binary file as pyarrow needs to write to it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = xxhash.xxh3_128()
        self.nbytes = 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        written = memoryview(data).nbytes
        self._file.write(data)
        self.nbytes += written
        return written

    def digest(self) -> str:
        """XXH3, 128 bits, in hexadecimal digits, of all that was written."""
        return str(self._digest.hexdigest())

    def read_at(self, nbytes: int, offset: int) -> bytes:
        """What was written there."""
        self._file.flush()
        return os.pread(self._file.fileno(), nbytes, offset)

    def tell(self) -> int:
        return self.nbytes

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def commit(self) -> None:
        """Make the file visible under its final name."""
        self._file.flush()
        self._publish()

    @abstractmethod
    def _publish(self) -> None: ...

    @abstractmethod
    def discard(self) -> None:
        """Leave nothing behind. Safe after `commit`, which it does not undo."""


class LocalFile(PendingFile):
    def __init__(self, final: Path, scratch: Path) -> None:
        self._final = final
        self._path = scratch / f"{final.name}.{uuid.uuid4().hex}"
        super().__init__(self._path.open("w+b"))

    def _publish(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.replace(self._final)
        flush_folder(self._final.parent)

    def discard(self) -> None:
        with suppress(OSError):  # what was buffered does not fit a full disk: there is nothing to keep
            self._file.close()
        with suppress(OSError):  # the disk is read-only by now: the next writer clears up
            self._path.unlink(missing_ok=True)


class UploadedFile(PendingFile):
    """Local until it is complete: what a killed process was writing vanishes with it."""

    def __init__(self, filesystem: Any, key: str) -> None:
        super().__init__(tempfile.TemporaryFile(prefix="jacjobs-"))  # noqa: SIM115
        self._filesystem = filesystem
        self._key = key

    def _publish(self) -> None:
        """In a thread: a signal raises in the main one, which then waits until the object is whole."""
        # A descriptor of its own: if the waiting is interrupted too, `discard` does not take the file away.
        file = os.fdopen(os.dup(self._file.fileno()), "rb")
        with ThreadPoolExecutor(1) as uploader:
            uploader.submit(self._upload, file).result()
        self._file.close()

    def _upload(self, file: IO[bytes]) -> None:
        with file:
            file.seek(0)
            stream = self._filesystem.open_output_stream(self._key)
            try:
                shutil.copyfileobj(file, stream, COPY_BYTES)
            except BaseException:
                stream.close()  # completes the upload of what it was given: it offers no way to abandon it
                self._filesystem.delete_file(self._key)
                raise
            stream.close()

    def discard(self) -> None:
        self._file.close()


def flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storing(where: object, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn the operating system's errors into a sentence with the path, the bytes needed and those free."""
    try:
        yield
    except OSError as error:
        raise StoreError(_sentence(error, str(where), needed_bytes)) from error


@contextmanager
def reading(where: object) -> Iterator[None]:
    """Turn the operating system's or an object store's errors into a sentence."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot read {where}: {reason(error)}") from error


def _sentence(error: OSError, where: str, needed_bytes: int | None) -> str:
    what = f"cannot write {where}: {reason(error)}"
    if error.errno == errno.ENOENT:
        return (
            f"{what} (its folder was removed, or its mount went away); bring it back, then `jacjobs resume`"
        )
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return what
    needed = f"{needed_bytes:,} bytes needed, " if needed_bytes is not None else ""
    try:
        free = f"{shutil.disk_usage(Path(where).parent).free:,} bytes free"
    except OSError:
        free = "free space unknown"
    return f"{what} ({needed}{free}); make room, then `jacjobs resume`"


def reason(error: BaseException) -> str:
    """What an operating system's or an object store's error says, in one line."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"\s+", " ", said).strip()
