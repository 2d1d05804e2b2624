"""Batch scripts for Slurm: read by bash, and really run, with stubs for Slurm and Ray on the PATH."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

import jacjobs
from jacjobs.scheduling.targets.command import Here
from jacjobs.scheduling.targets.slurm import slurm
from tests.scheduling.jobs import scheduled
from tests.scheduling.small import small_job, wait_for
from tests.scheduling.test_crontab import entries

STUBS = {
    # Slurm's part: the script is run on its first node, and again as long as it was requeued.
    "sbatch": """
        export SLURM_JOB_ID=7 SLURM_JOB_NODELIST=node[1-2] SLURM_JOB_NUM_NODES=2
        while :; do
          rm -f "$SLURM/requeued"
          bash "$1" & echo $! > "$SLURM/batch"
          wait $!; code=$?
          echo "ended $code" >> "$SLURM/log"
          [ -e "$SLURM/requeued" ] || exit $code
        done
    """,
    "scontrol": """
        echo "scontrol $*" >> "$SLURM/log"
        case "$1" in
          show) echo node1; echo node2 ;;
          requeue) touch "$SLURM/requeued" ;;
        esac
    """,
    "srun": """
        echo "srun $*" >> "$SLURM/log"
        while [ "$1" != ray ]; do shift; done
        exec "$@"
    """,
    # What symmetric-run does on the head node, with no Ray: its words are kept for a look at them.
    "ray": """
        echo "ray $*" >> "$SLURM/log"
        [ "$1" = symmetric-run ] || exit 0
        while [ "$1" != -- ]; do shift; done
        shift
        [ -z "$NO_RAY" ] || exit 0
        "$@"
    """,
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment with the stubs; `$SLURM/log` has what was called."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, body in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{body}")
        (stubs / name).chmod(0o755)
    package = Path(jacjobs.__file__).parent.parent
    return {
        **os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", "SLURM": str(tmp_path), "NO_RAY": "",
        "PYTHONPATH": str(package),
    }  # fmt: skip


def script(here: Here, job: object, nodes: int = 2) -> Path:
    files = slurm([job], here, nodes)  # type: ignore[list-item]
    for name, text in files.items():
        (here.files / name).write_text(text)
    (path,) = here.files.glob("*.sbatch")
    return path


def stub_python(folder: Path, code: int) -> Path:
    """For a python that only ends as it is told, beside the stubs."""
    python = folder / "stubs" / "python"
    python.write_text(f'#!/bin/sh\necho "python $*" >> "$SLURM/log"\nexit {code}\n')
    python.chmod(0o755)
    return python


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


@pytest.mark.parametrize(("restarts", "occurrence"), [("0", "latest"), ("2", "unfinished")])
def test_a_job_that_was_requeued_goes_on_with_what_it_had_begun(
    restarts: str, occurrence: str, tmp_path: Path, cluster: dict[str, str]
) -> None:
    path = script(Here(tmp_path, stub_python(tmp_path, 0), tmp_path), scheduled())
    environment = {**cluster, "SLURM_RESTART_COUNT": restarts}
    subprocess.run(["sbatch", str(path)], env=environment, check=True, timeout=60)
    (line,) = [line for line in log(tmp_path) if line.startswith("python")]
    assert f"--scheduled {occurrence} --address auto" in line


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (77, 0), (1, 1), (2, 2), (4, 4)])
def test_the_script_ends_as_the_job_does(
    code: int, ends: int, tmp_path: Path, cluster: dict[str, str]
) -> None:
    here = Here(tmp_path, stub_python(tmp_path, code), tmp_path)
    path = script(here, scheduled())
    done = subprocess.run(["sbatch", str(path)], env=cluster, check=False, timeout=60)
    assert done.returncode == ends
    seen = log(tmp_path)
    assert seen[:2] == ["scontrol show hostnames node[1-2]", "ray get-auth-token --generate"]
    assert seen[2].startswith("srun --nodes=2 --ntasks-per-node=1 ray symmetric-run --address node1:6379")
    assert "python -m jacjobs submit /srv/jobs/nightly.yaml --scheduled latest --address auto" in seen
    assert not any("requeue" in line for line in seen)


def test_a_job_that_was_stopped_is_requeued_until_it_ends(tmp_path: Path, cluster: dict[str, str]) -> None:
    """75 leads to `scontrol requeue` of this very job, and nothing else does."""
    python = stub_python(tmp_path, 75)
    python.write_text(
        '#!/bin/sh\necho "python" >> "$SLURM/log"\n[ $(grep -c ^python "$SLURM/log") -eq 3 ] || exit 75\n'
    )
    path = script(Here(tmp_path, python, tmp_path), scheduled())
    done = subprocess.run(["sbatch", str(path)], env=cluster, check=False, timeout=60)
    assert done.returncode == 0
    seen = [line for line in log(tmp_path) if line.startswith(("scontrol requeue", "ended"))]
    assert seen == ["scontrol requeue 7", "ended 75"] * 2 + ["ended 0"]


def test_ray_that_does_not_start_is_no_success(tmp_path: Path, cluster: dict[str, str]) -> None:
    """symmetric-run ends with 0 then."""
    path = script(Here(tmp_path, stub_python(tmp_path, 0), tmp_path), scheduled())
    done = subprocess.run(["sbatch", str(path)], env={**cluster, "NO_RAY": "1"}, check=False, timeout=60)
    assert done.returncode == 1
    assert not any(line.startswith("python") for line in log(tmp_path))


@pytest.mark.timeout(240)
def test_time_runs_out_and_the_job_goes_on_where_it_was(tmp_path: Path, cluster: dict[str, str]) -> None:
    """A real job: Slurm's signal reaches the script, the run is stopped, requeued and finished."""
    job = small_job(tmp_path, "0 0 1 1 *", points=4, size=512)
    # No Ray here: this process computes.
    ray = tmp_path / "stubs" / "ray"
    ray.write_text(ray.read_text().replace('"$@"', '"${@/%auto/inline}"'))
    python = tmp_path / "stubs" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    path = script(Here(tmp_path, python, tmp_path), job)
    (tmp_path / "hold").touch()
    batch = subprocess.Popen(["sbatch", str(path)], env=cluster, start_new_session=True)
    try:
        wait_for(lambda: list(tmp_path.glob("runs/*/_jacjobs/held")), batch)
        os.kill(int((tmp_path / "batch").read_text()), signal.SIGTERM)
        wait_for(lambda: list(tmp_path.glob("runs/*/_jacjobs/stop")), batch)
        time.sleep(2.5)  # it looks every two seconds
        (tmp_path / "hold").unlink()
        assert batch.wait(timeout=120) == 0
    finally:
        if batch.poll() is None:
            os.killpg(batch.pid, signal.SIGKILL)
    seen = [line for line in log(tmp_path) if line.startswith(("scontrol requeue", "ended"))]
    assert seen == ["scontrol requeue 7", "ended 75", "ended 0"]
    (run,) = tmp_path.glob("runs/*")
    J = jacjobs.open(run)
    assert J.manifest is not None
    assert [attempt.state for attempt in J.manifest.attempts] == ["stopped", "complete"]


CLUSTERS = {
    "auto": ({}, 2, [], []),
    "cpus": (
        {"workers": 6, "cpus_per_worker": 4, "gpus_per_worker": 0}, 2,
        ["--cpus-per-task=12"], ["--num-cpus=12"],
    ),
    "gpus": (
        {"workers": 3, "gpus_per_worker": 1}, 2,
        ["--cpus-per-task=2", "--gpus-per-node=2"], ["--num-cpus=2", "--num-gpus=2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CLUSTERS)
def test_options_are_what_the_job_asks_for_and_ray_understands(case: str, tmp_path: Path) -> None:
    asked, nodes, sbatch, ray = CLUSTERS[case]
    text = script(Here(tmp_path, Path("/opt/python"), tmp_path), scheduled(cluster=asked), nodes).read_text()
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert f"--nodes={nodes}" in options
    assert "--signal=B:TERM@300" in options
    assert "--requeue" in options
    assert [o for o in options if o.startswith(("--cpus", "--gpus"))] == sbatch
    assert text.startswith("#!/bin/bash\n")
    # Ray's own parser takes its words apart: what is its own, and what goes to `ray start`.
    (line,) = [line for line in text.splitlines() if "symmetric-run" in line and "--address" in line]
    words = shlex.split(line.strip().rstrip("\\"))
    words = words[2 : words.index("--")]
    parsed = symmetric_run.make_context(
        "_", [w.replace("$nodes", "2") for w in words], resilient_parsing=True
    )
    assert parsed.params["address"] == "$head:6379"
    assert parsed.params["min_nodes"] == 2
    assert curate_and_validate_ray_start_args([w.replace("$nodes", "2") for w in words]) == ray


def test_bash_reads_scripts_with_odd_paths(tmp_path: Path) -> None:
    here = Here(tmp_path / "it's $HOME", Path("/opt/my env/python"), tmp_path)
    path = script(here, scheduled(file=Path('/srv/it\'s a "job".yaml')))
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_scrontab_submits_the_scripts(tmp_path: Path) -> None:
    here = Here(Path("/srv"), Path("/opt/python"), Path("/srv/my out"))
    jobs = [scheduled("*/5 * * * mon"), scheduled(name="Other One")]
    (text,) = (text for name, text in slurm(jobs, here, 1).items() if name == "jacjobs.scrontab")
    assert [(fields, command) for _, fields, command in entries(text)] == [
        ("*/5 * * * 1", "sbatch '/srv/my out/jacjobs-nightly.sbatch'"),
        ("0 2 * * *", "sbatch '/srv/my out/jacjobs-other-one.sbatch'"),
    ]
