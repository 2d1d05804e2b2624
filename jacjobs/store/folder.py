"""A run's folder: where everything is, and what is there. docs/format.md describes it to other readers.

RUN/
  part-….parquet            complete as soon as it is visible
  _jacjobs/plan.json        the plan and the job, enough to resume
  _jacjobs/pattern.npz      of a sparse J: which entries, and which product makes each; for who writes
  _jacjobs/manifest.json    written last
  _jacjobs/stop             somebody asks the writer to stop
  _jacjobs/lock.json        who is writing, as long as somebody is
  _jacjobs/attempts/        a file for each submit and resume, until the manifest takes them in
  _jacjobs/scratch/         files on their way; left-overs of a crash go when the next writer comes
  _jacjobs/spills/          blocks of a matrix that is not transposed yet; they go when its parts are there
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jacjobs.errors import InputError, StoreError
from jacjobs.shape import Compression, Layout
from jacjobs.store.attempt import Attempt
from jacjobs.store.commit import reading, storing
from jacjobs.store.place import SCRATCH, place_of
from jacjobs.store.plausible import LEVELS, Checks, Count, Job, Plan, Shape, is_shallow
from jacjobs.store.schema import FORMAT, part_rectangle
from jacjobs.store.spill import SPILLS
from jacjobs.store.writer import PartRecord

_Model = TypeVar("_Model", bound=BaseModel)
PLAN, MANIFEST = "_jacjobs/plan.json", "_jacjobs/manifest.json"
PATTERN = "_jacjobs/pattern.npz"
ATTEMPTS = "_jacjobs/attempts"
STOP = "_jacjobs/stop"
_PRIVATE = "_jacjobs"
_Format = Annotated[int, Field(ge=1, le=FORMAT, strict=True)]


class RunRecord(BaseModel):
    """`plan.json`: written once, before anything is computed.

    run:          a digest of problem, options and plan: what makes two runs the same.
    layout, stripe:  what a record holds: a row or a column, and how many entries of it (None: all).
    fingerprint:  digests of the function and of each argument.
    options:      what was asked for, as far as it changes the result.
    plan:         the plan, frozen.
    job:          the job file and its folder, None for a problem that came from Python.
    """

    model_config = ConfigDict(frozen=True)

    format: _Format = FORMAT
    run: str
    name: str
    created: str
    versions: dict[str, str]
    shape: Shape
    layout: Layout = "rows"
    stripe: Count | None = None
    fingerprint: dict[str, str]
    options: dict[str, Any]
    plan: Plan
    job: Job | None = None


class Manifest(BaseModel):
    """`manifest.json`: written last, when every part is there.

    attempts:  how it was carried out: every submit and resume that left a record.
    plan:      the digest of `plan.json`.
    """

    model_config = ConfigDict(frozen=True)

    format: _Format = FORMAT
    run: str
    name: str
    finished: str
    shape: Shape
    strategy: str
    chunk: int
    compression: Compression
    versions: dict[str, str]
    checks: Checks = {}
    memory: dict[str, Any] = {}
    timings: dict[str, float]
    parts: tuple[PartRecord, ...]
    attempts: tuple[Attempt, ...] = ()
    plan: str = ""


class RunFolder:
    """One run's folder, on a file system or in an object store."""

    def __init__(self, path: str | Path) -> None:
        self.place = place_of(path)

    def __str__(self) -> str:
        return str(self.place)

    @property
    def uri(self) -> str:
        """An absolute path, or a URI."""
        return self.place.uri

    @property
    def is_run(self) -> bool:
        with reading(self.place.at(PLAN)):
            return "plan.json" in self.place.files(_PRIVATE)

    def require_run(self) -> None:
        if self.is_run:
            return
        with reading(self.uri):
            got = self.place.refusal() or "a folder without _jacjobs/plan.json"
            if self.place.is_empty():
                got = "nothing there"
        raise InputError.about(str(self), got=got, expected="the folder of a run", do="check the path")

    def check_writable(self) -> None:
        """Refuse a place where no run can be put, without writing anything."""
        with reading(self.uri):
            # A crash may have come before the first plan was written.
            refused, empty = self.place.refusal(), self.place.is_empty(but=_PRIVATE)
        if refused is not None:
            raise InputError.about(
                f"output path {self}", got=refused, expected="a folder", do="choose another"
            )
        if not empty and not self.is_run:
            raise InputError.about(
                f"output path {self}",
                got="a folder with other things in it",
                expected="an empty or new folder, or a run",
                do="choose another",
            )

    def create(self, record: RunRecord) -> None:
        """Make the folder and write `plan.json`; whatever could be made before an error is removed again."""
        try:
            with storing(self.uri):
                self.place.prepare()
            self._write(PLAN, record)
        except StoreError as error:
            raise InputError(f"output path: {error}; choose another") from None

    def write_pattern(self, arrays: Mapping[str, NDArray[Any]]) -> str:
        """Of a sparse J, before `create`. Returns the digest of the file."""
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        try:
            with storing(self.uri):
                self.place.prepare()
                self.place.write(PATTERN, file.getvalue())
        except StoreError as error:
            raise InputError(f"output path: {error}; choose another") from None
        return str(xxhash.xxh3_128_hexdigest(file.getvalue()))

    def pattern(self, digest: str) -> dict[str, NDArray[Any]]:
        """What `write_pattern` wrote. Raises StoreError where it is not that."""
        with reading(self.place.at(PATTERN)):
            raw = self.place.read(PATTERN)
        if xxhash.xxh3_128_hexdigest(raw) != digest:
            raise StoreError(f"{self.place.at(PATTERN)} is not the one that this run began with; restore it")
        with np.load(io.BytesIO(raw), allow_pickle=False) as kept:
            return dict(kept)

    def clear(self) -> None:
        """Remove the run that is here, and nothing that is not a run's."""
        with storing(self.uri):
            for name in self.part_names():
                self.place.remove(name)
            self.place.remove_folder(_PRIVATE)

    def clear_scratch(self) -> None:
        """Remove what a crashed writer left. Only the holder of the lock may."""
        with storing(self.place.at(SCRATCH)):
            self.place.clear_scratch()

    def clear_spills(self) -> None:
        """Remove the blocks of matrices that were not transposed. Only the holder of the lock may."""
        with storing(self.place.at(SPILLS)):
            self.place.remove_folder(SPILLS)

    def record(self) -> RunRecord:
        return self._read(PLAN, RunRecord)

    def manifest(self) -> Manifest | None:
        """None as long as the run is not complete. Raises StoreError if `plan.json` is not the manifest's."""
        with reading(self.place.at(MANIFEST)):
            if "manifest.json" not in self.place.files(_PRIVATE):
                return None
        manifest = self._read(MANIFEST, Manifest)
        if manifest.plan != self._digest(PLAN):
            raise StoreError(f"{self.place.at(PLAN)} is not the one that this run began with; restore it")
        return manifest

    def write_manifest(self, manifest: Manifest) -> Manifest:
        """Returns it as it was written: with the digest of `plan.json`. It holds the attempts' records."""
        written = manifest.model_copy(update={"plan": self._digest(PLAN)})
        self._write(MANIFEST, written)
        with contextlib.suppress(OSError):
            self.place.remove_folder(ATTEMPTS)
        return written

    def attempts(self, manifest: Manifest | None) -> list[Attempt]:
        """The records that attempts left: those in the manifest, and those since, in their order. A damaged
        one is left out: it tells a story, and nothing depends on it.
        """
        with reading(self.place.at(ATTEMPTS)):
            names = sorted(self.place.files(ATTEMPTS))
        found = [] if manifest is None else list(manifest.attempts)
        for name in names:
            with contextlib.suppress(StoreError):
                found.append(self._read(f"{ATTEMPTS}/{name}", Attempt))
        return found

    def write_attempt(self, attempt: Attempt) -> None:
        self._write(f"{ATTEMPTS}/{attempt.number:04d}.json", attempt)

    def part_names(self) -> list[str]:
        """Visible parts, in the order of their records. What is visible is complete."""
        with reading(self.uri):
            return sorted(name for name in self.place.files() if part_rectangle(name) is not None)

    def request_stop(self) -> None:
        """Ask whoever writes here to stop; it is looked for every few seconds."""
        with storing(self.place.at(STOP)):
            self.place.write(STOP, b"")

    def stop_requested(self) -> bool:
        """False where nobody can say: a store that is down for a while asks for nothing."""
        try:
            return STOP.rpartition("/")[2] in self.place.files(_PRIVATE)
        except OSError:
            return False

    def clear_stop(self) -> None:
        """Forget what was asked of an earlier writer. Only the holder of the lock may."""
        with storing(self.place.at(STOP)):
            self.place.remove(STOP)

    def _digest(self, name: str) -> str:
        with reading(self.place.at(name)):
            return str(xxhash.xxh3_128_hexdigest(self.place.read(name)))

    def _write(self, name: str, model: BaseModel) -> None:
        """With a digest of itself, so that a change by accident does not go unnoticed."""
        content = model.model_dump(mode="json")
        content["digest"] = _json_digest(content)
        with storing(self.place.at(name)):
            self.place.write(name, (json.dumps(content, indent=2) + "\n").encode())

    def _read(self, name: str, model: type[_Model]) -> _Model:
        path = self.place.at(name)
        with reading(path):
            raw = self.place.read(name)
        try:
            content = json.loads(raw)
        except ValueError as error:
            raise StoreError(f"{path} is damaged: {error}; restore it") from error
        except RecursionError:
            content = None
        if not isinstance(content, dict) or not is_shallow(content):
            raise StoreError(f"{path} is damaged: no object of at most {LEVELS} levels; restore it")
        version = content.get("format")
        if isinstance(version, int) and version > FORMAT:
            raise StoreError(f"{path} has format {version}, this jacjobs reads up to {FORMAT}; upgrade it")
        digest = content.pop("digest", None)
        if digest != _json_digest(content):
            raise StoreError(f"{path} was changed since it was written (its digest differs); restore it")
        try:
            return model.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            raise StoreError(f"{path} is damaged: {where!r}: {what}; restore it") from error


def _json_digest(content: dict[str, Any]) -> str:
    """Of the values, however they are laid out: keys sorted, no spaces."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return str(xxhash.xxh3_128_hexdigest(text.encode()))
