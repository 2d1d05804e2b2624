"""Kubernetes: a CronJob, whose pod computes alone, or KubeRay's RayCronJob, which makes a cluster each time.

Both have images in which jacjobs and Ray are installed and the folder of the jobs is `/jobs`.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from jacjobs.errors import InputError
from jacjobs.scheduling.jobs import ScheduledJob
from jacjobs.scheduling.targets.command import gap_remark, header, slugs
from jacjobs.scheduling.targets.fields import kubernetes_fields

STOP_SECONDS = 600
"""Between being asked to stop and being killed: blocks that are being computed are finished."""
SHORTEST_DEADLINE_SECONDS = 10
"""Kubernetes looks every ten seconds. jacjobs itself sees to shorter ones."""
TRIES = 6
_JOBS, _WORK = "/jobs", "/work"
_FAILED_FOR_GOOD = [2, 3, 4]
_POLICIES = {"forbid": "Forbid", "replace": "Replace", "allow": "Allow"}

# Shells wait no longer once a signal has come: then it waits again. It may come before there is whom to tell.
_WRAPPER = """\
trap 'stopping=yes; if [ -n "${{run-}}" ]; then kill -TERM "$run"; fi' TERM
{command} &
run=$!
if [ -n "${{stopping-}}" ]; then kill -TERM "$run"; fi
wait "$run"; code=$?
if [ -n "${{stopping-}}" ]; then wait "$run"; code=$?; fi
if [ "$code" -eq 77 ]; then code=0; fi
exit "$code"
"""


@dataclass(frozen=True)
class Pods:
    """
    image:  what the containers are made of.
    claim:  a PersistentVolumeClaim; relative output paths lead into it.
    ray:    the version of Ray in the image.
    """

    image: str
    claim: str | None
    ray: str


def cron_jobs(jobs: list[ScheduledJob], pods: Pods) -> dict[str, str]:
    return {
        f"jacjobs-{name}.cronjob.yaml": _document(
            "k8s-cronjob", [*_INSTALL, *gap_remark(job, "Kubernetes")], _cron_job(name, job, pods)
        )
        for name, job in slugs(jobs)
    }


def ray_cron_jobs(jobs: list[ScheduledJob], pods: Pods) -> dict[str, str]:
    files = {}
    for name, job in slugs(jobs):
        install = [
            *_INSTALL,
            "RayCronJob is alpha: KubeRay 1.6 or newer, with its feature gate RayCronJob switched on.",
            *gap_remark(job, "KubeRay"),
            "It cannot tell exit codes apart: a job that fails for good is tried once more, too.",
        ]
        if job.schedule.timezone != "UTC":
            install.append(
                "timeZone is newer than KubeRay 1.6, which refuses it: there, use `timezone: UTC`."
            )
        files[f"jacjobs-{name}.raycronjob.yaml"] = _document(
            "raycronjob", install, _ray_cron_job(name, job, pods)
        )
    return files


class _Dumper(yaml.SafeDumper):
    """Scripts as blocks of lines."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)

_INSTALL = ["Install: `kubectl apply -f FILE`. The image has jacjobs, Ray, and this folder of jobs as /jobs."]


def _document(target: str, install: list[str], content: dict[str, Any]) -> str:
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return "\n".join(header(target, install)) + "\n" + text


def _cron_job(name: str, job: ScheduledJob, pods: Pods) -> dict[str, Any]:
    cluster = job.spec.cluster
    gpus = cluster.gpus_each(there=False)
    if cluster.workers == "auto":  # as many CPUs as the node lets it have
        container = _container(job, pods, "jacjobs", None, math.ceil(gpus))
    else:
        several = cluster.workers
        cpus = several * cluster.cpus_per_worker
        container = _container(job, pods, "jacjobs", cpus, math.ceil(several * gpus))
    container["command"] = ["/bin/sh", "-c", _WRAPPER.format(command=_submit(job))]
    # For Ray's object store: a container has 64 MiB of it otherwise. KubeRay sees to that itself.
    container["volumeMounts"].append({"name": "shared-memory", "mountPath": "/dev/shm"})
    volumes = [*_volumes(pods), {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    deadline = job.schedule.deadline
    late = {} if deadline is None else {"startingDeadlineSeconds": _at_least(deadline.total_seconds())}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": f"jacjobs-{name}"},
        "spec": {
            "schedule": kubernetes_fields(job),
            "timeZone": "Etc/UTC" if job.schedule.timezone == "UTC" else job.schedule.timezone,
            "concurrencyPolicy": _POLICIES[job.schedule.overlap],
            **late,
            "jobTemplate": {
                "spec": {
                    "backoffLimit": TRIES,
                    "podFailurePolicy": {
                        "rules": [
                            {
                                "action": "FailJob",
                                "onExitCodes": {
                                    "containerName": "jacjobs",
                                    "operator": "In",
                                    "values": _FAILED_FOR_GOOD,
                                },
                            },
                            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                        ]
                    },
                    "template": {
                        "spec": {
                            "restartPolicy": "Never",
                            "terminationGracePeriodSeconds": STOP_SECONDS,
                            "containers": [container],
                            "volumes": volumes,
                        }
                    },
                }
            },
        },
    }


def _ray_cron_job(name: str, job: ScheduledJob, pods: Pods) -> dict[str, Any]:
    """The driver is on the head, which computes nothing; each worker has a pod of its own."""
    cluster = job.spec.cluster
    workers = cluster.workers if cluster.workers != "auto" else 1
    gpus = cluster.gpus_each(there=False)
    head = _container(job, pods, "ray-head", 1, 0)
    worker = _container(job, pods, "ray-worker", cluster.cpus_per_worker, math.ceil(gpus))
    zone = {} if job.schedule.timezone == "UTC" else {"timeZone": job.schedule.timezone}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": {"name": f"jacjobs-{name}"},
        "spec": {
            "schedule": kubernetes_fields(job),
            **zone,
            "jobTemplate": {
                # HTTPMode: Ray's shell reads it as it is; `ray job submit` would quote it anew.
                "submissionMode": "HTTPMode",
                "entrypoint": f"{_submit(job, '--address', 'auto')} || [ $? -eq 77 ]",
                "backoffLimit": 1,
                "shutdownAfterJobFinishes": True,
                "rayClusterSpec": {
                    "rayVersion": pods.ray,
                    "headGroupSpec": {
                        "rayStartParams": {"num-cpus": "0"},
                        "template": {"spec": {"containers": [head], "volumes": _volumes(pods)}},
                    },
                    "workerGroupSpecs": [
                        {
                            "groupName": "workers",
                            "replicas": workers,
                            "minReplicas": workers,
                            "maxReplicas": workers,
                            "rayStartParams": {},
                            "template": {"spec": {"containers": [worker], "volumes": _volumes(pods)}},
                        }
                    ],
                },
            },
        },
    }


def _container(job: ScheduledJob, pods: Pods, name: str, cpus: int | None, gpus: int) -> dict[str, Any]:
    path = job.spec.output.path
    in_store = "://" in path
    if not in_store and (pods.claim is None or path.startswith("/")):
        raise InputError.about(
            f"{job.file}: output.path",
            got=repr(path),
            expected="a place that outlives a pod",
            do="use a URI such as s3://…, or a relative path and --claim PERSISTENT_VOLUME_CLAIM",
        )
    asked = {"cpu": cpus, "nvidia.com/gpu": gpus or None}
    resources = {what: str(number) for what, number in asked.items() if number is not None}
    return {
        "name": name,
        "image": pods.image,
        "workingDir": _JOBS if pods.claim is None else _WORK,
        "resources": {"requests": resources, "limits": dict(resources)},
        "volumeMounts": [] if pods.claim is None else [{"name": "work", "mountPath": _WORK}],
    }


def _volumes(pods: Pods) -> list[dict[str, Any]]:
    if pods.claim is None:
        return []
    return [{"name": "work", "persistentVolumeClaim": {"claimName": pods.claim}}]


def _submit(job: ScheduledJob, *more: str) -> str:
    return shlex.join(["jacjobs", "submit", f"{_JOBS}/{job.file.name}", "--scheduled", "latest", *more])


def _at_least(seconds: float) -> int:
    return max(SHORTEST_DEADLINE_SECONDS, int(seconds))
