"""Files for Kubernetes and KubeRay: by their published schemas, and what the containers run, really run."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from croniter import croniter
from hypothesis import given, settings

from jacjobs.errors import InputError
from jacjobs.occurrences import following
from jacjobs.scheduling.targets.kubernetes import Pods, cron_jobs, ray_cron_jobs
from tests.scheduling.expressions import expressions
from tests.scheduling.jobs import scheduled

PODS = Pods("registry.example/jacjobs:1", "runs", "2.60.0")
NOW = datetime(2026, 7, 1, 12, 34, tzinfo=UTC)
VERSION = "1.37"
CLUSTERS: list[dict[str, Any]] = [
    {},
    {"workers": 4, "cpus_per_worker": 2, "gpus_per_worker": 1},
    {"workers": 3, "gpus_per_worker": 0},
    {"gpus_per_worker": 2},
]


def document(files: dict[str, str]) -> dict[str, Any]:
    (text,) = files.values()
    content = yaml.safe_load(text)
    assert isinstance(content, dict)
    return content


# -- CronJob -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("claim", [None, "runs"])
@pytest.mark.parametrize("overlap", ["forbid", "replace", "allow"])
def test_a_cronjob_is_what_kubernetes_accepts(
    cluster: dict[str, Any], claim: str | None, overlap: str
) -> None:
    path = "s3://bucket/{scheduled:%Y-%m-%d}" if claim is None else "runs/{scheduled:%Y-%m-%d}"
    job = scheduled(
        path=path, cluster=cluster, overlap=overlap, timezone="Europe/Berlin", start_deadline="2h"
    )
    made = document(cron_jobs([job], Pods(PODS.image, claim, PODS.ray)))
    kubernetes_validate.validate(made, VERSION, strict=True)
    spec = made["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["startingDeadlineSeconds"]) == (
        "0 2 * * *", "Europe/Berlin", 7200
    )  # fmt: skip
    assert spec["concurrencyPolicy"].lower() == overlap
    (failed, _) = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert (failed["action"], failed["onExitCodes"]["values"]) == ("FailJob", [2, 3, 4])
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "what a podFailurePolicy needs"
    assert failed["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    expected = [{}, {"cpu": "8", "nvidia.com/gpu": "4"}, {"cpu": "3"}, {"nvidia.com/gpu": "2"}]
    limits = expected[CLUSTERS.index(cluster)]
    assert pod["containers"][0]["resources"] == {"requests": limits, "limits": limits}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"shared-memory": "/dev/shm", **({} if claim is None else {"work": "/work"})}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)


def test_the_schema_notices_what_is_wrong() -> None:
    made = document(cron_jobs([scheduled()], PODS))
    made["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCode"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="onExitCode"):
        kubernetes_validate.validate(made, VERSION, strict=True)


STUB = """#!/bin/sh
echo "$@" >> "$LOG"
trap 'echo term >> "$LOG"; exit 75' TERM
if [ -n "$TELLS" ]; then kill -TERM $PPID; fi
if [ -n "$HOLD" ]; then
  touch "$HOLD"
  while [ -e "$HOLD" ]; do sleep 0.05; done
fi
exit "$CODE"
"""


@pytest.fixture
def container(tmp_path: Path) -> dict[str, str]:
    """An environment in which `jacjobs` is a stub that ends with $CODE."""
    stub = tmp_path / "bin" / "jacjobs"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    return {
        "PATH": f"{stub.parent}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "HOLD": "", "TELLS": ""
    }  # fmt: skip


@pytest.mark.parametrize(("code", "seen"), [(0, 0), (77, 0), (2, 2), (75, 75), (1, 1)])
def test_the_pod_ends_as_the_job_does_and_skipped_is_success(
    code: int, seen: int, container: dict[str, str]
) -> None:
    made = document(cron_jobs([scheduled(file=Path("/x/it's one.yaml"))], PODS))
    pod = made["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert subprocess.run(command, env={**container, "CODE": str(code)}, check=False).returncode == seen
    log = Path(container["LOG"]).read_text()
    assert log == "submit /jobs/it's one.yaml --scheduled latest\n"


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_pod_that_is_told_to_end_passes_it_on_and_waits(
    shell: str, container: dict[str, str], tmp_path: Path
) -> None:
    made = document(cron_jobs([scheduled()], PODS))
    pod = made["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    script = pod["containers"][0]["command"][2]
    hold = tmp_path / "hold"
    child = subprocess.Popen([shell, "-c", script], env={**container, "HOLD": str(hold), "CODE": "0"})
    while not hold.exists():
        assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 75
    assert Path(container["LOG"]).read_text().endswith("latest\nterm\n")


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_pod_that_is_told_to_end_as_it_begins_passes_it_on(
    shell: str, container: dict[str, str], tmp_path: Path
) -> None:
    """Perhaps before the shell knows whom to tell."""
    made = document(cron_jobs([scheduled()], PODS))
    script = made["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"][2]
    environment = {**container, "TELLS": "yes", "HOLD": str(tmp_path / "hold"), "CODE": "0"}
    for _ in range(40):
        done = subprocess.run([shell, "-c", script], env=environment, check=False, timeout=20)
        assert done.returncode == 75


# -- the schedule, as their parser reads it ------------------------------------------------------------------


def robfig(fields: str) -> croniter:
    """The rules of github.com/robfig/cron, ParseStandard: weekdays to 6; both days only beside a plain *."""
    minute, hour, day, month, weekday = fields.split()
    assert not set(fields) - set("0123456789*/,- "), "digits only"
    assert "7" not in weekday
    both = day == "*" or weekday == "*"
    return croniter(f"{minute} {hour} {day} {month} {weekday}", NOW, day_or=not both)


@settings(max_examples=100, deadline=None)
@given(expressions())
def test_kubernetes_reads_the_occurrences_of_the_schedule(cron: str) -> None:
    """Or it is refused, where Kubernetes cannot say it."""
    job = scheduled(cron)
    try:
        fields = document(cron_jobs([job], PODS))["spec"]["schedule"]
    except InputError as error:
        day, weekday = cron.split()[2], cron.split()[4]
        assert "*/" in (day[:2], weekday[:2]), error  # noqa: PT017
        return
    theirs = robfig(fields)
    ours = list(islice(following(job.schedule, NOW), 10))
    assert ours == [theirs.get_next(datetime) for _ in ours]
    assert document(ray_cron_jobs([job], PODS))["spec"]["schedule"] == fields


def test_days_that_must_be_right_in_month_and_week_are_refused() -> None:
    with pytest.raises(InputError, match=r"a \* for one of them: Kubernetes would run it on either"):
        cron_jobs([scheduled("0 0 */2 * 1")], PODS)
    with pytest.raises(InputError, match="Kubernetes knows no seconds"):
        ray_cron_jobs([scheduled("0 0 0 * * *")], PODS)


def test_a_run_must_outlive_its_pod() -> None:
    for path, claim in (("runs/{scheduled:%Y-%m-%d}", None), ("/runs/{scheduled:%Y-%m-%d}", "runs")):
        with pytest.raises(InputError, match="expected a place that outlives a pod; use a URI such as s3://"):
            cron_jobs([scheduled(path=path)], Pods(PODS.image, claim, PODS.ray))


# -- RayCronJob ----------------------------------------------------------------------------------------------

LABEL = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def pods_of(made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = made["spec"]["jobTemplate"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


def strict(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


START = {"type": "object", "additionalProperties": {"type": "string"}}
CRD = strict(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayCronJob"},
        # KubeRay: a RayJob's name has at most 47 characters, and the time of the occurrence is added to it.
        "metadata": strict({"name": {**LABEL, "maxLength": 36}}, "name"),
        "spec": strict(
            {
                "schedule": {"type": "string", "not": {"pattern": "TZ"}},
                "timeZone": {"type": "string", "minLength": 1},
                "suspend": {"type": "boolean"},
                "jobTemplate": strict(
                    {
                        "activeDeadlineSeconds": COUNT,
                        "backoffLimit": COUNT,
                        "entrypoint": {"type": "string"},
                        "shutdownAfterJobFinishes": {"type": "boolean"},
                        "submissionMode": {
                            "enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
                        },
                        "ttlSecondsAfterFinished": COUNT,
                        "rayClusterSpec": strict(
                            {
                                "rayVersion": {"type": "string"},
                                "headGroupSpec": strict(
                                    {"rayStartParams": START, "template": {"type": "object"}}, "template"
                                ),
                                "workerGroupSpecs": {
                                    "type": "array",
                                    "items": strict(
                                        {
                                            "groupName": {"type": "string"},
                                            "replicas": COUNT,
                                            "minReplicas": COUNT,
                                            "maxReplicas": COUNT,
                                            "rayStartParams": START,
                                            "template": {"type": "object"},
                                        },
                                        "groupName",
                                        "maxReplicas",
                                        "minReplicas",
                                        "template",
                                    ),
                                },
                            },
                            "headGroupSpec",
                        ),
                    }
                ),
            },
            "jobTemplate",
            "schedule",
        ),
    },
    "apiVersion",
    "kind",
    "spec",
)
"""helm-chart/kuberay-operator/crds/ray.io_raycronjobs.yaml of ray-project/kuberay, as far as it is used here;
what is not in it is refused, as `kubectl apply` does. Pods have Kubernetes' own schema."""


def validate_ray(made: dict[str, Any]) -> None:
    jsonschema.validate(made, CRD)
    for template in pods_of(made):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template}
        kubernetes_validate.validate(pod, VERSION, strict=True)


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin"])
def test_a_raycronjob_is_what_kuberay_accepts(cluster: dict[str, Any], timezone: str) -> None:
    job = scheduled(name="A Very Long Name, Longer Than KubeRay Takes", cluster=cluster, timezone=timezone)
    files = ray_cron_jobs([job], PODS)
    made = document(files)
    validate_ray(made)
    assert ("timeZone" in made["spec"]) == (timezone != "UTC"), "KubeRay 1.6 has none"
    assert ("newer than KubeRay 1.6" in "".join(files.values())) == (timezone != "UTC")
    (group,) = made["spec"]["jobTemplate"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == cluster.get("workers", 1)
    (worker,) = group["template"]["spec"]["containers"]
    limits = {"cpu": str(cluster.get("cpus_per_worker", 1))}
    if cluster.get("gpus_per_worker"):
        limits["nvidia.com/gpu"] = str(cluster["gpus_per_worker"])
    assert worker["resources"] == {"requests": limits, "limits": limits}


def test_the_check_notices_what_is_wrong() -> None:
    made = document(ray_cron_jobs([scheduled()], PODS))
    made["spec"]["concurrencyPolicy"] = "Forbid"
    with pytest.raises(jsonschema.ValidationError, match="concurrencyPolicy"):
        validate_ray(made)
    made = document(ray_cron_jobs([scheduled()], PODS))
    next(pods_of(made))["spec"]["containers"][0]["imagePull"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePull"):
        validate_ray(made)


@pytest.mark.parametrize(("code", "well"), [(0, True), (77, True), (2, False), (75, False)])
def test_rays_shell_runs_the_entrypoint(code: int, well: bool, container: dict[str, str]) -> None:
    made = document(ray_cron_jobs([scheduled(file=Path("/x/it's one.yaml"))], PODS))
    entrypoint = made["spec"]["jobTemplate"]["entrypoint"]
    done = subprocess.run(entrypoint, shell=True, env={**container, "CODE": str(code)}, check=False)
    assert (done.returncode == 0) == well
    expected = "submit /jobs/it's one.yaml --scheduled latest --address auto\n"
    assert Path(container["LOG"]).read_text() == expected
