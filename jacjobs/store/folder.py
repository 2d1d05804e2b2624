"""A run's folder: where everything is, and what is there.

RUN/
  part-….parquet            complete as soon as it is visible
  _jacjobs/plan.json        the plan and the job, enough to resume
  _jacjobs/manifest.json    written last
  _jacjobs/lock.json        who is writing, as long as somebody is
  _jacjobs/scratch/         files on their way; left-overs of a crash go when the next writer comes
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from jacjobs.errors import InputError, StoreError
from jacjobs.shape import JacobianShape, Rectangle
from jacjobs.store.commit import flush_folder, storing, write_text
from jacjobs.store.schema import FORMAT, part_rectangle
from jacjobs.store.writer import PartRecord

_Model = TypeVar("_Model", bound=BaseModel)


class RunRecord(BaseModel):
    """`plan.json`: written once, before anything is computed.

    run:          a digest of problem, options and plan: what makes two runs the same.
    fingerprint:  digests of the function and of each argument.
    options:      what was asked for, as far as it changes the result.
    plan:         the plan, frozen.
    job:          the job file and its folder, None for a problem that came from Python.
    """

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    run: str
    name: str
    created: str
    versions: dict[str, str]
    shape: JacobianShape
    fingerprint: dict[str, str]
    options: dict[str, Any]
    plan: dict[str, Any]
    job: dict[str, Any] | None = None


class Manifest(BaseModel):
    """`manifest.json`: written last, when every part is there."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    run: str
    name: str
    finished: str
    shape: JacobianShape
    strategy: str
    chunk: int
    compression: str
    versions: dict[str, str]
    checks: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    timings: dict[str, float]
    parts: tuple[PartRecord, ...]


class RunFolder:
    """One run's folder on a local (or mounted) file system."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.private = self.path / "_jacjobs"
        self.scratch = self.private / "scratch"

    @property
    def is_run(self) -> bool:
        return (self.private / "plan.json").is_file()

    def require_run(self) -> None:
        if self.is_run:
            return
        got = "a folder without _jacjobs/plan.json" if self.path.is_dir() else "nothing there"
        if self.path.is_file():
            got = "a file"
        raise InputError.about(str(self.path), got=got, expected="the folder of a run", do="check the path")

    def check_writable(self) -> None:
        """Refuse a place where no run can be put, without writing anything."""
        place = self.path
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise InputError.about(
                f"output path {self.path}", got=f"{place}, a file", expected="a folder", do="choose another"
            )
        if place == self.path and not self.is_run and any(place.iterdir()):
            raise InputError.about(
                f"output path {self.path}",
                got="a folder with other things in it",
                expected="an empty or new folder, or a run",
                do="choose another",
            )

    def create(self, record: RunRecord) -> None:
        """Make the folder and write `plan.json`; whatever could be made before an error is removed again."""
        missing = [p for p in (self.scratch, *self.scratch.parents) if not p.exists()]
        try:
            with storing(self.path):
                self.scratch.mkdir(parents=True, exist_ok=True)
            write_text(self.private / "plan.json", record.model_dump_json(indent=2), self.scratch)
            flush_folder(self.path.parent)
        except StoreError as error:
            for made in missing:
                if made.is_dir():
                    made.rmdir()
            raise InputError(f"output path: {error}; choose another") from None

    def clear(self) -> None:
        """Remove the run that is here, and nothing that is not a run's."""
        with storing(self.path):
            for name in self.part_names():
                (self.path / name).unlink()
            shutil.rmtree(self.private)

    def clear_scratch(self) -> None:
        """Remove what a crashed writer left. Only the holder of the lock may."""
        with storing(self.scratch):
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch.mkdir(parents=True)

    def record(self) -> RunRecord:
        return self._read("plan.json", RunRecord)

    def manifest(self) -> Manifest | None:
        """None as long as the run is not complete."""
        if not (self.private / "manifest.json").exists():
            return None
        return self._read("manifest.json", Manifest)

    def write_manifest(self, manifest: Manifest) -> None:
        write_text(self.private / "manifest.json", manifest.model_dump_json(indent=2), self.scratch)

    def part_names(self) -> list[str]:
        """Visible parts, in the order of their records. What is visible is complete."""
        try:
            names = [entry.name for entry in self.path.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if part_rectangle(name) is not None)

    def part_rectangles(self) -> list[Rectangle]:
        return [r for name in self.part_names() if (r := part_rectangle(name)) is not None]

    def _read(self, name: str, model: type[_Model]) -> _Model:
        path = self.private / name
        try:
            content = model.model_validate_json(path.read_bytes())
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        except ValidationError as error:
            raise StoreError(f"{path} is damaged: {error.errors()[0]['msg']}") from error
        version = getattr(content, "format", FORMAT)
        if version > FORMAT:
            raise StoreError(f"{path} has format {version}, this jacjobs reads up to {FORMAT}; upgrade it")
        return content
