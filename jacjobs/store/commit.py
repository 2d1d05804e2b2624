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
import fcntl
import mmap
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

import numpy as np
import xxhash

from jacjobs.errors import StoreError

COPY_BYTES = 8 << 20
BUFFER_BYTES = 4 << 20
_O_DIRECT = getattr(os, "O_DIRECT", 0)
"""Not every system has it."""


class PendingFile(ABC):
    """A file on its way: `write` to it, then `commit` or `discard`. It digests what it is given."""

    def __init__(self, file: IO[bytes] | DirectFile) -> None:
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

    def commit(self) -> None:
        """Make the file visible under its final name."""
        self._file.flush()
        self._publish()

    @abstractmethod
    def _publish(self) -> None: ...

    @abstractmethod
    def discard(self) -> None:
        """Leave nothing behind. Safe after `commit`, which it does not undo."""


class DirectFile:
    """A new file that is written around the system's cache of pages, where its file system can (O_DIRECT).

    J is larger than memory, mostly. Through the cache each of its pages is allocated, copied to and thrown
    out again, for more of a processor's time than its checksums and digests take (docs/decisions/0029), and
    whatever else was in the cache is thrown out too.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        self._direct = self._switch(on=True)
        # Direct writes are of whole blocks of the device, from memory as aligned as they are: a mapping is.
        self._buffer = np.frombuffer(mmap.mmap(-1, BUFFER_BYTES), np.uint8)
        self._used = 0

    def write(self, data: Any) -> None:
        raw = np.frombuffer(data, np.uint8)
        while len(raw):
            some = raw[: BUFFER_BYTES - self._used]
            self._buffer[self._used : self._used + len(some)] = some
            self._used += len(some)
            raw = raw[len(some) :]
            if self._used == BUFFER_BYTES:
                self._empty()

    def flush(self) -> None:
        """What is left of the last block can only go through the cache, as does all that follows."""
        self._direct = self._direct and self._switch(on=False)
        self._empty()

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        """Without what was not flushed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _empty(self) -> None:
        left = self._buffer[: self._used]
        while len(left):
            try:
                left = left[os.write(self._descriptor, left.data) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._direct = self._switch(on=False)  # the device has larger blocks, or promised too much
        self._used = 0

    def _switch(self, *, on: bool) -> bool:
        """Whether writes are direct now."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~_O_DIRECT
        with suppress(OSError):
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | _O_DIRECT if on else flags)
            return on and _O_DIRECT != 0
        return False


class LocalFile(PendingFile):
    def __init__(self, final: Path, scratch: Path, *, cached: bool) -> None:
        """`cached`: through the system's cache of pages, for what is soon read again."""
        self._final = final
        self._path = scratch / f"{final.name}.{uuid.uuid4().hex}"
        super().__init__(self._path.open("xb") if cached else DirectFile(self._path))

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
