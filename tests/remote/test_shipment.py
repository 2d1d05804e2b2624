"""What travels to a cluster, and what does not."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import jacjobs
from jacjobs.errors import InputError
from jacjobs.jobspec import read_job
from jacjobs.remote import shipment
from jacjobs.remote.shipment import pack


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "p.py").write_text("def build(): ...\n")
    (folder / "my job's $HOME.yaml").write_text(
        "name: a job\nproblem: p.py:build\noutput: {path: /shared/run}\n"
    )
    return folder / "my job's $HOME.yaml"


def packed(file: Path, tmp_path: Path, *settings: str) -> shipment.Shipment:
    return pack(read_job(file, list(settings)), file, tmp_path / f"stage-{len(list(tmp_path.iterdir()))}")


def names(shipped: shipment.Shipment) -> set[str]:
    return {str(path.relative_to(shipped.folder)) for path in shipped.folder.rglob("*") if path.is_file()}


def test_the_folder_travels_without_what_is_hidden_compiled_or_a_run(file: Path, tmp_path: Path) -> None:
    kept = {"p.py", "data/points.csv", "helpers/more.py"}
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "linked.py").write_text("linked")
    (file.parent / "links").symlink_to(tmp_path / "shared")
    (file.parent / "loop").symlink_to(file.parent)
    kept |= {"links/linked.py"}
    left = {".env", ".git/config", "__pycache__/p.pyc", "runs/a/_jacjobs/plan.json", "runs/a/part-0.parquet"}
    for name in (kept | left) - {"links/linked.py"}:
        path = file.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert names(packed(file, tmp_path)) == {*kept, file.name}


def test_the_job_file_is_as_it_is_to_run_there(file: Path, tmp_path: Path) -> None:
    settings = ["cluster.address=http://h:8265", "compute.chunk=7"]
    shipped = packed(file, tmp_path, *settings)
    there = read_job(shipped.folder / file.name, [])
    here = read_job(file, settings)
    assert there.cluster.address == "auto"
    assert there.model_copy(update={"cluster": here.cluster}) == here


@pytest.mark.parametrize(
    "value",
    [
        1e-5,
        1e20,
        0.1,
        float("inf"),
        "1e-5",
        "no",
        "2026-11-25",
        "😀 ä",
        "a: b\n",
        None,
        True,
        7,
        [1e-9, {"a": "~"}],
    ],
)
def test_params_are_there_what_they_are_here(value: object, file: Path, tmp_path: Path) -> None:
    spec = read_job(file, []).model_copy(update={"params": {"value": value}})
    shipped = pack(spec, file, tmp_path / "stage")
    there = read_job(shipped.folder / file.name, []).params["value"]
    assert there == value
    assert type(there) is type(value)


def test_equal_jobs_have_equal_digests_whenever_they_are_packed(file: Path, tmp_path: Path) -> None:
    first = packed(file, tmp_path)
    (file.parent / "p.py").touch()
    (file.parent / "__pycache__").mkdir()
    (file.parent / "__pycache__" / "p.pyc").write_text("anything")
    assert packed(file, tmp_path).digest == first.digest
    assert packed(file, tmp_path, "cluster.address=http://elsewhere:8265").digest == first.digest
    assert packed(file, tmp_path, "compute.chunk=7").digest != first.digest
    (file.parent / "p.py").write_text("def build(): pass\n")
    assert packed(file, tmp_path).digest != first.digest


def test_the_shell_reads_the_name_of_the_job_file_as_it_is(file: Path, tmp_path: Path) -> None:
    shipped = packed(file, tmp_path)
    echoed = subprocess.run(
        ["sh", "-c", shipped.entrypoint.replace(shipment.ENTRYPOINT, "printf %s")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert echoed.stdout == f"./{file.name}"
    assert shlex.split(shipped.entrypoint)[:3] == ["python", "-m", "jacjobs.cli.shipped"]
    assert shipped.id.startswith("jacjobs-a-job-")


def test_jacjobs_is_found_there_with_its_metadata(file: Path, tmp_path: Path) -> None:
    """By a Python that has none of its own: two folders, each on its path as Ray puts them."""
    shipped = packed(file, tmp_path)
    code = (
        f"import sys; sys.path[:0] = {[str(module.parent) for module in shipped.modules]!r}\n"
        "import jacjobs, importlib.metadata as m\n"
        "print(jacjobs.__file__, m.version('jacjobs'), len(m.requires('jacjobs')))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    where, version, requirements = done.stdout.split()
    assert Path(where).is_relative_to(shipped.modules[0])
    assert version == metadata.version("jacjobs")
    assert int(requirements) == len(metadata.requires("jacjobs") or [])
    ours = {p.relative_to(Path(jacjobs.__file__).parent) for p in Path(jacjobs.__file__).parent.rglob("*.py")}
    assert {p.relative_to(shipped.modules[0]) for p in shipped.modules[0].rglob("*.py")} == ours
    assert (shipped.modules[0] / "cli/report/page.html.j2").is_file()


def test_what_cannot_travel_is_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"got 'run', which is relative, expected an absolute path on storage"
    ):
        packed(file, tmp_path, "output.path=run")
    monkeypatch.setattr(shipment, "LIMIT_BYTES", 1 << 20)
    (file.parent / "data.bin").write_bytes(bytes(2 << 20))
    with pytest.raises(InputError, match=r"got 2 MiB, of which data\.bin has 2, expected at most 1 MiB"):
        packed(file, tmp_path)
