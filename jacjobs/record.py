"""What a run's record says, and how a job differs from the one that a run was made for."""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from pydantic import ValidationError

from jacjobs.errors import InputError, StoreError
from jacjobs.fingerprint import fingerprint
from jacjobs.job import Job
from jacjobs.planning.planner import Plan
from jacjobs.store.folder import RunFolder, RunRecord

THE_RESULT: dict[str, Any] = {
    **dict.fromkeys(
        (
            "shape",
            "strategy",
            "chunk",
            "tiling",
            "pattern",
            "threads",
            "compression",
            "stripe",
            "group_records",
        ),
        True,
    ),
    "second": {"strategy": True, "chunk": True},
}
"""Of a plan: what decides what is written."""


def _result_options(job: Job) -> dict[str, Any]:
    """The options that change what is written."""
    return {
        "strategy": job.compute.strategy,
        "chunk": job.compute.chunk,
        **({} if job.compute.structure == "auto" else {"structure": job.compute.structure}),
        "dtype": job.compute.dtype,
        "seed": job.compute.seed,
        **({"tf32": True} if job.compute.tf32 else {}),
        "layout": job.output.layout,
        "output.dtype": job.output.dtype,
        "compression": job.output.compression,
        "cpus_per_worker": job.cluster.cpus_per_worker,
    }


def differences(record: RunRecord, job: Job) -> list[tuple[str, str, str]]:
    """(what, what the run has, what the job has) for everything that makes them different runs."""
    had = {**record.fingerprint, **record.options, **_that_compute(record.versions)}
    has = {**fingerprint(job.problem), **_result_options(job), **_that_compute(_versions())}
    return [(what, str(had.get(what)), str(has.get(what))) for what in unlike(had, has)]


def _that_compute(versions: dict[str, str]) -> dict[str, str]:
    """The versions of what decides the last bits of J."""
    return {f"version of {name}": versions.get(name, "unknown") for name in ("torch", "jacjobs")}


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jacjobs", "torch", "pyarrow", "ray")},
    }


def unlike(had: dict[str, Any], has: dict[str, Any]) -> list[str]:
    """The keys whose values differ, in their order."""
    return [what for what in dict.fromkeys([*had, *has]) if had.get(what) != has.get(what)]


def plan_in(folder: RunFolder, record: RunRecord) -> Plan:
    """The plan that a run was frozen with.

    Raises InputError for one that another version froze and this one does not understand, StoreError for one
    that is of another J than the rest of the record.
    """
    try:
        plan = Plan.model_validate(record.plan)
    except ValidationError as error:
        first, version = error.errors(include_url=False)[0], record.versions.get("jacjobs")
        what = f"{'no' if first['type'] == 'missing' else 'another'} {'.'.join(map(str, first['loc']))}"
        raise InputError.about(
            folder.uri,
            got=f"a run of jacjobs {version}, whose plan has {what}",
            expected="one of this version",
            do="finish it with that version, or --force-new to begin again",
        ) from None
    tiling, shape = plan.tiling, record.shape
    cut = tiling.points, tiling.rows, tiling.columns, tiling.layout
    told = plan.shape, plan.layout, plan.stripe
    if told != (shape, record.layout, record.stripe) or cut != (
        shape.points,
        shape.rows,
        shape.columns,
        record.layout,
    ):
        raise StoreError(f"the plan in {folder} is of another J than its shape says; restore its plan.json")
    return plan


def renewed(record: RunRecord, job: Job) -> RunRecord:
    """The record with what may change between two attempts, since it does not change what is written."""
    compute = job.compute
    plan = {
        **record.plan,
        "nonfinite": compute.nonfinite,
        "check_all": compute.check == "all" or job.problem.pattern is not None,
        "block_timeout": compute.block_timeout,
    }
    if compute.check == "off":
        plan["checked_by"] = None
        if plan.get("second") is not None:
            plan["second"] = {**plan["second"], "checked_by": None}
    return record.model_copy(update={"plan": plan})


def new_record(job: Job, plan: Plan, marks: dict[str, str]) -> RunRecord:
    options = _result_options(job)
    content = plan.model_dump(mode="json", include=THE_RESULT)
    run = hashlib.sha256(json.dumps([marks, options, content], sort_keys=True).encode()).hexdigest()[:16]
    spec = None
    if job.spec is not None:
        spec = {"spec": job.spec.model_dump(mode="json"), "folder": str(job.folder)}
    return RunRecord(
        run=run,
        name=job.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        shape=plan.shape,
        layout=plan.layout,
        stripe=plan.stripe,
        fingerprint=marks,
        options=options,
        plan=plan.model_dump(mode="json"),
        job=spec,
    )
