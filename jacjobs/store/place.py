"""Where a run lives: a folder on a file system, or a prefix in an object store. Names are relative to it.

Object stores are what `pyarrow.fs` knows by URI: `s3://bucket/runs/a`, `gs://bucket/runs/a`, … Credentials
come from the environment (`AWS_ACCESS_KEY_ID`, …), endpoints from there (`AWS_ENDPOINT_URL`) or the URI's
query, as https://arrow.apache.org/docs/python/filesystems.html says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs

from jacjobs.errors import InputError
from jacjobs.store.commit import LocalFile, PendingFile, UploadedFile, flush_folder, reason

SETTLE_SECONDS = 1.0
"""How long a lock in an object store is looked at before it counts as held."""
SCRATCH = "_jacjobs/scratch"
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SECRET = re.compile("key|secret|token|password|signature", re.IGNORECASE)
"""In the name of an option of a URI."""


class Place(ABC):
    """A folder of files. Methods raise OSError, FileNotFoundError for a name that is not there."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __str__(self) -> str:
        return self.uri

    def at(self, name: str) -> str:
        """The full name of a file here, for messages."""
        return f"{self.uri.partition('?')[0].rstrip('/')}/{name}"

    @abstractmethod
    def files(self, folder: str = "") -> dict[str, int]:
        """Names of the files in a folder (not in folders below it), with their sizes; {} if there is none."""

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    @abstractmethod
    def open(self, name: str) -> pa.NativeFile:
        """The file, for reading at any position."""

    @abstractmethod
    def arrow(self, name: str) -> tuple[Any, str]:
        """The file as other readers get it: an Arrow file system, and the file's path in it."""

    @abstractmethod
    def pending(self, name: str, *, cached: bool = True) -> PendingFile:
        """A file to write, which appears under its name when it is committed.

        `cached=False`: it is large, and not soon read again.
        """

    def write(self, name: str, data: bytes) -> None:
        """Replace the file, completely or not at all."""
        pending = self.pending(name)
        try:
            pending.write(data)
            pending.commit()
        finally:
            pending.discard()

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Make the file unless it is there; whether it was made."""

    @abstractmethod
    def exchange(self, name: str, old: bytes, new: bytes) -> bool:
        """Replace the file if it still holds `old`; of several that try, one does. Whether it was done."""

    @abstractmethod
    def touch(self, name: str) -> None:
        """Make the file new."""

    @abstractmethod
    def age_seconds(self, name: str) -> float:
        """Since it was last written or touched."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Safe for a name that is not there."""

    @abstractmethod
    def remove_folder(self, folder: str) -> None:
        """With all that is in it. Safe for one that is not there."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the folders that files are written through."""

    @abstractmethod
    def clear_scratch(self) -> None:
        """Remove files that were on their way when their writer crashed."""

    @abstractmethod
    def refusal(self) -> str | None:
        """Why nothing can be put here: something other than a folder is in the way."""

    @abstractmethod
    def is_empty(self, but: str = "") -> bool:
        """Nothing is there; a folder named `but` does not count."""


class LocalFolder(Place):
    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        super().__init__(str(self.path))

    def files(self, folder: str = "") -> dict[str, int]:
        try:
            with os.scandir(self.path / folder) as entries:
                sizes = {entry.name: _file_size(entry) for entry in entries}
                return {name: size for name, size in sizes.items() if size is not None}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def read(self, name: str) -> bytes:
        return self._regular(name).read_bytes()

    def open(self, name: str) -> pa.NativeFile:
        return pa.OSFile(str(self._regular(name)), "rb")

    def _regular(self, name: str) -> Path:
        """Of a pipe or a device, nobody knows how long reading takes."""
        path = self.path / name
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return path

    def arrow(self, name: str) -> tuple[Any, str]:
        return fs.LocalFileSystem(), str(self.path / name)

    def pending(self, name: str, *, cached: bool = True) -> PendingFile:
        final = self.path / name
        final.parent.mkdir(exist_ok=True)
        return LocalFile(final, self.path / SCRATCH, cached=cached)

    def create(self, name: str, data: bytes) -> bool:
        try:
            descriptor = os.open(self.path / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        return True

    def exchange(self, name: str, old: bytes, new: bytes) -> bool:
        """Whoever has the file locked (flock), while it is still the one under this name, may replace it."""
        path = self.path / name
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()) or file.read() != old:
                    return False
                (self.path / SCRATCH).mkdir(exist_ok=True)
                self.write(name, new)
        except FileNotFoundError:
            return False
        return True

    def touch(self, name: str) -> None:
        os.utime(self.path / name)

    def age_seconds(self, name: str) -> float:
        return time.time() - (self.path / name).stat().st_mtime

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        shutil.rmtree(self.path / folder, ignore_errors=True)

    def prepare(self) -> None:
        """What could be made before an error is removed again."""
        scratch = self.path / SCRATCH
        missing = [folder for folder in (scratch, *scratch.parents) if not folder.exists()]
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            flush_folder(self.path.parent)
        except OSError:
            for made in missing:
                if made.is_dir():
                    made.rmdir()
            raise

    def clear_scratch(self) -> None:
        """Unless the run is gone: under a mount that went away is another folder."""
        if (self.path / SCRATCH).parent.is_dir():
            self.remove_folder(SCRATCH)
            self.prepare()

    def refusal(self) -> str | None:
        place = self.path
        while not place.exists():
            place = place.parent
        return None if place.is_dir() else f"{place}, a file"

    def is_empty(self, but: str = "") -> bool:
        return not self.path.exists() or all(entry.name == but for entry in self.path.iterdir())


class ObjectStore(Place):
    """A prefix in a bucket. Folders are no more than the slashes in keys."""

    def __init__(self, uri: str, filesystem: Any, key: str) -> None:
        super().__init__(uri)
        self._filesystem = filesystem
        self._key = key.rstrip("/")

    def _at(self, name: str) -> str:
        return f"{self._key}/{name}" if name else self._key

    def files(self, folder: str = "") -> dict[str, int]:
        selector = fs.FileSelector(self._at(folder), allow_not_found=True)
        found = self._filesystem.get_file_info(selector)
        return {info.base_name: info.size for info in found if info.type == fs.FileType.File}

    def read(self, name: str) -> bytes:
        with self._filesystem.open_input_stream(self._at(name)) as file:
            content: bytes = file.read()
            return content

    def open(self, name: str) -> pa.NativeFile:
        return self._filesystem.open_input_file(self._at(name))

    def arrow(self, name: str) -> tuple[Any, str]:
        return self._filesystem, self._at(name)

    def pending(self, name: str, *, cached: bool = True) -> PendingFile:
        return UploadedFile(self._filesystem, self._at(name))

    def create(self, name: str, data: bytes) -> bool:
        """Of two that come within `SETTLE_SECONDS`, the one that writes last finds its own data there.

        pyarrow offers no conditional PUT. Should two runs start together all the same, they write the same
        parts.
        """
        if self._info(name).type != fs.FileType.NotFound:
            return False
        return self._settle(name, data)

    def exchange(self, name: str, old: bytes, new: bytes) -> bool:
        """As `create` does: the last that writes has it."""
        return self.read(name) == old and self._settle(name, new)

    def _settle(self, name: str, data: bytes) -> bool:
        self.write(name, data)
        time.sleep(SETTLE_SECONDS)
        return self.read(name) == data

    def touch(self, name: str) -> None:
        self.write(name, self.read(name))

    def age_seconds(self, name: str) -> float:
        info = self._info(name)
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(self.at(name))
        return time.time() - float(info.mtime_ns) / 1e9

    def _info(self, name: str) -> Any:
        return self._filesystem.get_file_info(self._at(name))

    def remove(self, name: str) -> None:
        if self._info(name).type != fs.FileType.NotFound:
            self._filesystem.delete_file(self._at(name))

    def remove_folder(self, folder: str) -> None:
        self._filesystem.delete_dir_contents(self._at(folder), missing_dir_ok=True)

    def prepare(self) -> None:
        """Nothing to make; but a bucket that is not there, or not ours, is better found before the work."""
        bucket = self._key.partition("/")[0]
        if self._filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
            raise FileNotFoundError(f"no bucket {bucket!r}")

    def clear_scratch(self) -> None:
        """Nothing to remove; and asking a store that is down would hide the error that came first."""

    def refusal(self) -> str | None:
        return f"{self.uri}, a file" if self._info("").type == fs.FileType.File else None

    def is_empty(self, but: str = "") -> bool:
        found = self._filesystem.get_file_info(fs.FileSelector(self._key, allow_not_found=True))
        return all(entry.base_name == but for entry in found)


def _file_size(entry: os.DirEntry[str]) -> int | None:
    """None for what is no file, or is gone by now; a link that leads in circles is neither."""
    try:
        found = entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def place_of(path: str | Path) -> Place:
    """The place that a path or a URI names. Raises InputError for one that leads nowhere."""
    text = str(path)
    expected = "a path, or a URI such as s3://bucket/runs/name"
    if not _is_name(text):
        raise InputError.about("path", got=repr(text), expected=expected)
    if not _URI.match(text):
        return LocalFolder(Path(path))
    try:
        _refuse_credentials(text)
        filesystem, key = fs.FileSystem.from_uri(text)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError.about(f"output path {text}", got=reason(error), expected=expected) from None
    if isinstance(filesystem, fs.LocalFileSystem):
        return LocalFolder(Path(key))
    return ObjectStore(text, filesystem, key)


def _is_name(text: str) -> bool:
    """Can a file system hold it?"""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _refuse_credentials(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.username is not None or any(_SECRET.search(key) for key, _ in parse_qsl(parts.query)):
        raise InputError.about(
            "output path",
            got="a URI with credentials in it",
            expected="one without: what the URI says is kept in the dataset",
            do="give them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …)",
        )
