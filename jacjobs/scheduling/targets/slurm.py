"""Batch scripts for Slurm, on which `ray symmetric-run` starts Ray on all nodes, and lines for scrontab."""

from __future__ import annotations

import math
import shlex

from jacjobs.scheduling.jobs import ScheduledJob
from jacjobs.scheduling.targets.command import Here, header, slugs
from jacjobs.scheduling.targets.fields import five_fields

SIGNAL_SECONDS = 300
"""Before its time is up, a job is told so; it finishes the blocks that are being computed."""
RAY_PORT = 6379
_SCHEDULED = '"$scheduled"'


def slurm(jobs: list[ScheduledJob], here: Here, nodes: int) -> dict[str, str]:
    """A script a job, and a crontab for all: its entries submit the scripts."""
    files = {f"jacjobs-{name}.sbatch": _script(name, job, here, nodes) for name, job in slugs(jobs)}
    lines = header(
        "slurm",
        [
            "Install: `scrontab FILE` replaces your scrontab; `scrontab -e` lets you add these lines to it.",
            "Slurm goes by the time zone of its controller, which must be the job's.",
        ],
    )
    for name, job in slugs(jobs):
        script = shlex.quote(str(here.files / f"jacjobs-{name}.sbatch"))
        lines += [
            "",
            f"# in {job.schedule.timezone}",
            "#SCRON --time=00:05:00",
            f"#SCRON --job-name=jacjobs-{name}-submit",
            f"{' '.join(five_fields(job, 'scrontab'))} sbatch {script}",
        ]
    files["jacjobs.scrontab"] = "\n".join(lines) + "\n"
    return files


def _script(name: str, job: ScheduledJob, here: Here, nodes: int) -> str:
    options = [
        f"--job-name=jacjobs-{name}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        "--exclusive",
        "--requeue",
        "--open-mode=append",
        f"--signal=B:TERM@{SIGNAL_SECONDS}",
    ]
    ray = ["ray", "symmetric-run", "--address", '"$head:' + f'{RAY_PORT}"', "--min-nodes", '"$nodes"']
    cluster = job.spec.cluster
    if cluster.workers != "auto":
        workers = math.ceil(cluster.workers / nodes)
        cpus = workers * cluster.cpus_per_worker
        options.append(f"--cpus-per-task={cpus}")
        ray.append(f"--num-cpus={cpus}")
        gpus = math.ceil(workers * cluster.gpus_each(there=False))
        if gpus:
            options.append(f"--gpus-per-node={gpus}")
            ray.append(f"--num-gpus={gpus}")
    lines = [
        "#!/bin/bash",
        *header(
            "slurm",
            [
                "Install: `scrontab jacjobs.scrontab`, or by hand: `sbatch FILE`.",
                "Add what your site needs: --time, --partition, --account. What is stopped is requeued;",
                "`scancel` ends it for good, and what was committed stays.",
            ],
        ),
        *(f"#SBATCH {option}" for option in options),
        "",
        "set -u",
        f"cd {shlex.quote(str(here.folder))} || exit 1",
        f"PATH={shlex.quote(str(here.python.parent))}:$PATH",
        'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "nodes=$SLURM_JOB_NUM_NODES",
        "unbegun=$(mktemp)",
        "# Requeued, it goes on with what it had begun, though another time has come since.",
        'scheduled=latest; [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && scheduled=unfinished',
        "# Others are on these nodes' network: Ray lets in who has the token, which is in your home.",
        "export RAY_AUTH_MODE=token",
        "(umask 077; ray get-auth-token --generate > /dev/null) || exit 1",
        "",
        "# Slurm tells this shell alone that the time is up: a signal to the step would hit Ray as well.",
        "stopping=",
        f"trap 'stopping=yes; {_in_quotes(here.command('stop', job.file))}' TERM",
        "",
        'srun --nodes="$nodes" --ntasks-per-node=1 \\',
        f"  {' '.join(ray)} -- \\",
        '  sh -c \'rm -f "$0"; exec "$@"\' "$unbegun" \\',
        f"  {here.submit(job, '--address', 'auto', scheduled=_SCHEDULED)} &",
        "step=$!",
        'wait "$step"',
        "code=$?",
        'if [ -n "$stopping" ]; then  # the signal ended the first wait',
        '  wait "$step"',
        "  code=$?",
        "fi",
        "trap - TERM",
        "",
        "# symmetric-run ends with 0 where Ray could not be started.",
        'if [ "$code" -eq 0 ] && [ -e "$unbegun" ]; then code=1; fi',
        'rm -f "$unbegun"',
        'case "$code" in',
        '  75) scontrol requeue "$SLURM_JOB_ID" ;;  # stopped: it goes on',
        "  77) code=0 ;;                            # skipped",
        "esac",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _in_quotes(command: str) -> str:
    """As part of a text in single quotes."""
    return command.replace("'", "'\\''")
