"""What travels to a cluster: a job file, the folder that it is in, and jacjobs itself.

The code that planned is the code that runs: jacjobs travels with every job, 300 kB that a node keeps, so the
cluster needs what jacjobs needs (torch, pyarrow, …), and no jacjobs of its own.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import yaml

import jacjobs
from jacjobs.errors import InputError
from jacjobs.jobspec import JobSpec
from jacjobs.remote.naming import submission_id
from jacjobs.store.folder import PLAN

LIMIT_BYTES = 64 << 20
"""Of a job's folder. It is code; Ray keeps it in the memory of the head."""
ENTRYPOINT = "python -m jacjobs.cli.shipped"
LEFT_BEHIND = ("__pycache__", "node_modules")
"""And whatever begins with a dot, and runs."""


@dataclass(frozen=True)
class Shipment:
    """
    folder:   a copy of the job's folder, with the job file as it is to run there.
    modules:  what Python there finds beside it: jacjobs and its metadata.
    job:      a digest of the job file, with what overrides it.
    digest:   of all that travels.
    """

    name: str
    path: str
    folder: Path
    modules: tuple[Path, ...]
    entrypoint: str
    job: str
    digest: str

    @property
    def id(self) -> str:
        """What a submission of it is called."""
        return submission_id(self.name, self.digest)


def pack(spec: JobSpec, file: Path, into: Path) -> Shipment:
    """Gather in the folder `into` what the job in `file` needs.

    Raises InputError where the output would be lost with the cluster, or the folder is too large to travel.
    """
    if "://" not in spec.output.path and not Path(spec.output.path).is_absolute():
        raise InputError.about(
            "output.path",
            got=f"{spec.output.path!r}, which is relative",
            expected="an absolute path on storage that all nodes of the cluster share, or a URI such as "
            "s3://bucket/runs",
            do="give --out",
        )
    folder = into / "job"
    try:
        _copy(file.parent, folder)
    except OSError as error:
        raise InputError.about(
            f"the job's folder {file.parent}",
            got=f"{error.filename}: {error.strerror}",
            expected="files that can be read, since all of it travels to the cluster",
            do="put the job file in a folder of its own",
        ) from None
    content = spec.model_dump()
    content["cluster"]["address"] = "auto"
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    (folder / file.name).write_text(text, encoding="utf-8")
    modules = _modules(into)
    digest = hashlib.sha256()
    for top in (folder, *modules):
        for path in sorted(path for path in top.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(into)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    entrypoint = f"{ENTRYPOINT} {shlex.quote(f'./{file.name}')}"
    job = hashlib.sha256(text.encode()).hexdigest()
    return Shipment(spec.name, spec.output.path, folder, modules, entrypoint, job, digest.hexdigest())


def _copy(folder: Path, into: Path) -> None:
    files = list(_files(folder, (folder.resolve(),)))
    sizes = {path: path.stat().st_size for path in files}
    if sum(sizes.values()) > LIMIT_BYTES:
        largest = max(files, key=lambda path: sizes[path])
        raise InputError.about(
            f"the job's folder {folder}",
            got=f"{sum(sizes.values()) >> 20:,} MiB, of which {largest.relative_to(folder)} has "
            f"{sizes[largest] >> 20:,}",
            expected=f"at most {LIMIT_BYTES >> 20} MiB, since all of it travels to the cluster",
            do="keep data on storage that the cluster reads, and the job file in a folder of its own",
        )
    for path in files:
        target = into / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Links are followed, but for one that leads to a folder that it is in."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in LEFT_BEHIND:
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and path.resolve() not in above and not (path / PLAN).exists():
            yield from _files(path, (*above, path.resolve()))


def _modules(into: Path) -> tuple[Path, ...]:
    """The package and its metadata, as they are installed: two folders that Python finds side by side."""
    package = into / "jacjobs"
    source = Path(jacjobs.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns(*LEFT_BEHIND, ".*"))
    installed = metadata.distribution("jacjobs")
    about = into / f"jacjobs-{installed.version}.dist-info"
    about.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: jacjobs", f"Version: {installed.version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in installed.requires or []]
    (about / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return package, about
