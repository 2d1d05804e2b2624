"""What Python programs and the command line call: plan, submit, resume, open."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from jacjobs.autodiff.catalogue import COMPILED, strategy_named
from jacjobs.autodiff.check import CHECKERS
from jacjobs.autodiff.device import device_of, tf32_as_wished
from jacjobs.errors import InputError, RunDiffersError, StoreError
from jacjobs.fingerprint import fingerprint
from jacjobs.jobspec import JobSpec, load_problem, parse_job
from jacjobs.planning.choice import Chooser, Resources, Timing
from jacjobs.planning.geometry import BLOCK_BYTES
from jacjobs.planning.options import ClusterOptions, ComputeOptions, OutputOptions
from jacjobs.planning.planner import Facts, Plan, Planner, chooser_for
from jacjobs.planning.sparse import SparseChooser
from jacjobs.problem import Problem
from jacjobs.run.address import INLINE, LOCAL, check_address
from jacjobs.run.comparison import differing_products
from jacjobs.run.coordinator import Coordinator, part_metadata
from jacjobs.run.handle import Run
from jacjobs.run.lookout import Lookout
from jacjobs.run.resources import check_budget, resources_here, resources_named, uses_gpu
from jacjobs.run.sparsity import Sparsity, knowing, look
from jacjobs.run.survey import survey
from jacjobs.run.tradeoff import Reading, readings
from jacjobs.run.tuner import Tuner, seconds_for
from jacjobs.store.folder import Manifest, RunFolder, RunRecord
from jacjobs.store.reader import JacobianDataset, open_run
from jacjobs.store.verify import Fault, Verdict, verify_run
from jacjobs.structure.compression import Grouped
from jacjobs.structure.detection import MOST_SECONDS

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
WORTH_BYTES = 256 << 20
"""A dense J of less is not looked at: finding its pattern takes a second or two. What kind of dataset a job
leaves must not depend on the machine, so this is not seconds."""
AUTO_SECONDS = 20.0
"""So long a look may take that nobody has asked for."""


@dataclass(frozen=True)
class Job:
    """A problem and what is asked for; `spec` and `folder` are set if it came from a job file."""

    problem: Problem
    name: str
    output: OutputOptions
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    spec: JobSpec | None = None
    folder: Path | None = None
    modules: tuple[ModuleType, ...] = ()


def job_from_spec(spec: JobSpec, folder: Path) -> Job:
    """Build the problem that a job file names; `folder` is where the file is."""
    if spec.schedule is not None:
        raise InputError.about(
            f"job {spec.name!r}",
            got="a job with a schedule",
            expected="that of one occurrence",
            do="make it by `spec.at(occurrence)`",
        )
    problem, modules = load_problem(spec, folder)
    return _job(problem, spec.name, spec.output, spec.compute, spec.cluster, spec, folder, tuple(modules))


def plan(problem: Problem, *, device: str | None = None, **options: Any) -> Plan:
    """The plan for `problem`, made without starting or writing anything.

    device:   plan for GPUs of this name ("H100 80GB"), whether there is one here or not.
    options:  strategy, chunk, memory, dtype, nonfinite, layout, compression, workers, cpus_per_worker, …: the
              keys of the job file's sections compute, output and cluster; `output_dtype` is output.dtype.

    Raises InputError for options that do not fit, or where memory or disk do not suffice; FunctionError where
    the function raises.
    """
    return plan_job(_job_from_options(problem, "runs/unnamed", options), device)


def submit(problem: Problem, path: str | Path, **options: Any) -> Run:
    """Compute the Jacobian of `problem` into a dataset at `path`; the options are those of `plan`.

    Where strategy or chunk are left open and the job is long enough, they are timed on the device first: at
    most 5% of the predicted time, and 30 s. Returns then with the run (address `inline`: it runs when waited
    for). If `path` holds a run of the same problem and options, what it lacks is computed, with the plan that
    it began with.

    Raises InputError (RunDiffersError, if a run of another job is there) before anything is written.
    """
    return submit_job(_job_from_options(problem, str(path), options))


def plan_job(job: Job, device: str | None = None) -> Plan:
    return _draft(job, device).predicted


def plan_of(path: str | Path) -> Plan:
    """The plan that the run at `path` began with. Runs no code of its job.

    Raises InputError where there is no run, or another version's.
    """
    folder = RunFolder(path)
    folder.require_run()
    return _plan_in(folder, folder.record())


def measure_job(job: Job, seconds: float) -> tuple[list[Reading], Plan]:
    """Measure memory and speed over strategies and chunks in this process, for about so long.

    Returns the readings, and the plan that `submit` would make.
    """
    draft = _draft(job)
    problem = _where_computed(job)
    groups = draft.predicted.groups
    chooser = chooser_for(draft.facts, job.compute, job.output, draft.resources, groups)
    if isinstance(chooser, SparseChooser):
        problem = problem.times(chooser.seeds(Grouped.like))
    with tf32_as_wished(problem):
        measured = list(readings(problem, chooser, job.cluster.cpus_per_worker, seconds))
    tuner = Tuner(problem, job.cluster.cpus_per_worker, str(device_of(problem)))
    return measured, draft.tuned(tuner.tune)


def _where_computed(job: Job) -> Problem:
    """The problem, on the device that its job would compute on here."""
    if not uses_gpu(job.cluster):
        return job.problem
    from jacjobs.run.cluster.actors import Payload

    return Payload.pack(job.problem, job.modules).unpack("cuda")


def submit_job(job: Job) -> Run:
    check_address(job.cluster.address)
    folder = RunFolder(job.output.path)
    folder.check_writable()
    if folder.is_run:
        record = folder.record()
        differences = _differences(record, job)
        if not differences:
            _plan_in(folder, record)
            return _begin(job, folder, _renewed(record, job))
        if not job.output.overwrite:
            raise RunDiffersError.checklist(folder.uri, differences)
    return _begin(job, folder, None)


def resume(path: str | Path, *, address: str | None = None) -> Run:
    """Finish the run at `path`, with the plan that it began with.

    Raises InputError if it came from Python (submit the same problem to the same path instead), and
    RunDiffersError if the job's code or data have changed since.
    """
    folder = RunFolder(path)
    folder.require_run()
    record = folder.record()
    if record.job is None:
        raise InputError.about(
            folder.uri,
            got="a run submitted from Python",
            expected="one submitted from a job file",
            do="call jacjobs.submit(problem, path) again with the same problem",
        )
    content = dict(record.job["spec"])
    content["output"] = {**content["output"], "path": folder.uri, "overwrite": False}
    if address is not None:
        content["cluster"] = {**content["cluster"], "address": address}
    spec = parse_job(content, folder.uri)
    return submit_job(job_from_spec(spec, Path(record.job["folder"])))


def verify(path: str | Path, problem: Problem | None = None) -> Verdict:
    """Read all of the dataset at `path`, and compare it with what its run said that it wrote: the digests of
    its files, its geometry (every entry exactly once), every record. Runs no code.

    problem:  if given, J is also compared with products of this problem (Freivalds' check, as while it was
              computed, but at every point), and the problem with the run's fingerprint. Runs its function.

    Raises InputError where there is no run, or one that is not complete is to be compared with a problem;
    FunctionError where the problem's function raises.
    """
    verdict = verify_run(str(path))
    if problem is None or not verdict.sound:
        return verdict
    if not verdict.complete:
        raise InputError.about(
            str(path),
            got="a run that is not complete",
            expected="a complete one",
            do="`jacjobs resume` it first",
        )
    return replace(verdict, faults=tuple(_products_faults(open_run(path), problem)))


def _products_faults(J: JacobianDataset, problem: Problem) -> Iterator[Fault]:
    """Where the dataset differs from the problem's own products, or its run from the problem."""
    record = J.record
    given = {key: record.options[key] for key in ("dtype", "seed", "tf32") if key in record.options}
    problem = _prepared(problem, ComputeOptions(**given))
    differing = _unlike(record.fingerprint, fingerprint(problem))
    if differing:
        yield Fault("_jacjobs/plan.json", f"is of another problem: {differing[0]} differs")
        return
    yield from differing_products(J, Plan.model_validate(record.plan), problem)


# -- runs --------------------------------------------------------------------------------------------------


class _InlineRun:
    """In this process: when it is waited for, or in a thread when it is to go on beside something else."""

    look_seconds = 0.05

    def __init__(self, job: Job, folder: RunFolder, record: RunRecord) -> None:
        from jacjobs.run.inline import InlineExecutor

        plan = Plan.model_validate(record.plan)
        self._coordinator = Coordinator(
            record,
            folder.uri,
            lambda: InlineExecutor(job.problem, plan, folder.uri, part_metadata(record)),
            workers=1,
        )
        self._outcome: Future[Manifest] | None = None
        self.progress = self._coordinator.progress
        self.stop = self._coordinator.stop

    def start(self) -> None:
        """In a thread that does not keep this process from ending: what was committed stays."""
        if self._outcome is None:
            self._outcome = Future()
            Thread(target=self._run, args=[self._outcome], daemon=True).start()

    def done(self) -> bool:
        """Who asks does not wait for it: so it goes on meanwhile."""
        self.start()
        assert self._outcome is not None
        return self._outcome.done()

    def result(self) -> Manifest:
        return self._coordinator.run() if self._outcome is None else self._outcome.result()

    def _run(self, outcome: Future[Manifest]) -> None:
        try:
            outcome.set_result(self._coordinator.run())
        except BaseException as error:
            outcome.set_exception(error)


def attach(run: str | Path) -> Run:
    """A run that was submitted elsewhere: by another process, or before this one began.

    run:  the path of its folder, or its URI; or its name, where this process is in the Ray that it runs in.

    In that Ray it is watched by its coordinator, elsewhere by its folder. Raises InputError where there is
    none, or where several have that name.
    """
    named = _ray_session()
    path = str(run)
    if named is not None and not RunFolder(path).is_run:
        path = named.path_of(path)
    folder = RunFolder(path)
    folder.require_run()
    record = folder.record()
    _plan_in(folder, record)
    running = Lookout(folder.uri) if named is None else named.running(record, folder.uri)
    return Run(folder.uri, record, running, attach)


def _ray_session() -> ModuleType | None:
    """What finds runs by their coordinators; None where this process is in no Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    from jacjobs.run.cluster import watched

    return watched


def _begin(job: Job, folder: RunFolder, record: RunRecord | None) -> Run:
    """Carry a record on, or make one. Nothing is started before the problem was looked at, unless there is a
    Ray to join, in which workers start meanwhile. Nothing is written before there is a connection.
    """
    if job.cluster.address == INLINE:
        if record is None:
            tuner = Tuner(job.problem, job.cluster.cpus_per_worker, str(device_of(job.problem)))
            record = _created(job, folder, _sound_draft(job), tuner.tune)
        return Run(folder.uri, record, _InlineRun(job, folder, record), attach)

    # Only here is Ray needed.
    from jacjobs.run.cluster.actors import Payload
    from jacjobs.run.cluster.session import joins, place, session
    from jacjobs.run.cluster.staff import staff
    from jacjobs.run.cluster.watched import RayRun

    draft = None if record is not None or joins(job.cluster) else _sound_draft(job)
    connection = session(job.cluster, _most_block_bytes(record or draft))
    connection.__enter__()
    try:
        placement = place(job.cluster)
        payload = Payload.pack(job.problem, job.modules)
        with staff(payload, job.cluster, placement) as engaged:
            if record is None:
                if draft is None:
                    engaged.engage(placement.workers)
                    draft = _sound_draft(job)
                payload = payload.knowing(job.problem)
                if job.cluster.address != LOCAL:  # what the workers have is not what this process has
                    resources = engaged.resources(job.compute.memory, job.output.path)
                    check_budget(resources)
                    draft = replace(draft, resources=resources)
                engaged.engage(draft.predicted.tiling.blocks)  # they start while one of them times chunks
                record = _created(job, folder, draft, functools.partial(engaged.tune, payload.trace))
            elif folder.manifest() is None:
                engaged.engage(Plan.model_validate(record.plan).tiling.blocks)
            running = RayRun(record, folder.uri, payload, placement, engaged.workers)
        return Run(folder.uri, record, running, attach, connection)
    except BaseException:
        connection.__exit__(None, None, None)
        raise


def _sound_draft(job: Job) -> _Draft:
    """Where the work is done on this host, a plan is made of it, which may refuse."""
    draft = _draft(job)
    if job.cluster.address in (INLINE, LOCAL):
        check_budget(draft.resources)
        _ = draft.predicted
    return draft


def _most_block_bytes(what: RunRecord | _Draft | None) -> int:
    """What the largest block may take in an embedded object store, whatever chunk tuning may choose; 0 where
    none is started.
    """
    if what is None:
        return 0
    if isinstance(what, RunRecord):
        return Plan.model_validate(what.plan).block_bytes
    shape, asked = what.facts.shape, what.job.compute.chunk
    product = max(shape.row_bytes, shape.column_bytes)
    chunk = 1 if asked == "auto" else min(asked, shape.points * max(shape.rows, shape.columns))
    return min(shape.total_bytes, max(BLOCK_BYTES, chunk * product))


# -- drafts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draft:
    """What a plan is made from, before anything is measured.

    marks:     of the problem before it was called, as a later attempt meets it: a call may leave traces.
    sparsity:  what a look at the pattern of J found; nothing, if nobody looked.
    """

    job: Job
    marks: dict[str, str]
    facts: Facts
    resources: Resources
    sparsity: Sparsity = field(default_factory=Sparsity)

    def planner(self) -> Planner:
        job = self.job
        return Planner(
            self.facts,
            job.compute,
            job.output,
            job.cluster,
            self.resources,
            lambda name: CHECKERS[strategy_named(name).makes],
        )

    @functools.cached_property
    def predicted(self) -> Plan:
        return self.planner().plan()

    def tuned(self, tune: Callable[[Chooser, float], list[Timing]]) -> Plan:
        """The plan after a look at the device, where it pays."""
        predicted = self.predicted
        limit = seconds_for(predicted.seconds)
        if not limit or "auto" not in (self.job.compute.strategy, self.job.compute.chunk):
            return predicted
        groups = predicted.groups
        if groups is not None and len(groups.kinds) > 1:  # a timing of one kind says nothing of the other
            return predicted
        chooser = chooser_for(self.facts, self.job.compute, self.job.output, self.resources, groups)
        timings = tune(chooser, limit)
        planner = self.planner()
        return planner.dense(timings) if groups is None else planner.sparse(groups, timings)

    def looked(self) -> _Draft:
        """With the pattern of J, where it is the user's wish or worth the time."""
        compute, problem = self.job.compute, self.job.problem
        wished = compute.structure == "sparse" or problem.pattern is not None
        if compute.structure == "dense":
            return self
        if self.job.output.layout == "columns":
            if compute.structure == "sparse":
                raise InputError.about(
                    "output.layout",
                    got="columns, of a sparse J",
                    expected="rows: records of a sparse J are rows",
                    do="--set output.layout=rows, or --set compute.structure=dense",
                )
            return self
        small = self.facts.stored(self.job.output).total_bytes < WORTH_BYTES
        if not wished and (small or compute.strategy in COMPILED):
            return self
        most_seconds = MOST_SECONDS if wished else AUTO_SECONDS
        sparsity = look(problem, self.facts, compute.strategy, self.resources, most_seconds)
        facts = knowing(self.facts, sparsity, given=problem.pattern is not None)
        return replace(self, facts=facts, sparsity=sparsity)


def _draft(job: Job, device: str | None = None) -> _Draft:
    """Look at the problem. Raises what `survey` raises."""
    marks = fingerprint(job.problem)
    memory, path = job.compute.memory, job.output.path
    if device is None:
        inline = device_of(job.problem) if job.cluster.address == INLINE else None
        resources = resources_here(job.cluster, memory, path, device=inline)
    else:
        resources = resources_named(device, job.cluster, memory, path)
    stored = job.output.dtype or job.problem.shape.dtype
    sample = stored if job.output.compression == "auto" else None
    with tf32_as_wished(job.problem):
        facts = survey(job.problem, job.compute.strategy, resources, sample=sample)
    return _Draft(job, marks, facts, resources).looked()


def _created(
    job: Job, folder: RunFolder, draft: _Draft, tune: Callable[[Chooser, float], list[Timing]]
) -> RunRecord:
    """Tune, freeze the plan, and make the folder."""
    plan = draft.tuned(tune)
    if folder.is_run:
        folder.clear()
    if plan.groups is not None:
        digest = folder.write_pattern(draft.sparsity.of(plan.groups).arrays())
        plan = plan.model_copy(update={"pattern": digest})
    record = _new_record(job, plan, draft.marks)
    folder.create(record)
    return record


# -- putting a record together -----------------------------------------------------------------------------


def _job_from_options(problem: Problem, path: str, options: dict[str, Any]) -> Job:
    """Sort keyword options into the sections of a job file; refuse those that none knows."""
    sections: dict[type[BaseModel], dict[str, Any]] = {
        ComputeOptions: {},
        OutputOptions: {"path": path},
        ClusterOptions: {},
    }
    for key, value in options.items():
        if key == "output_dtype":
            sections[OutputOptions]["dtype"] = value
            continue
        owner = next((section for section in sections if key in section.model_fields), None)
        if owner is None or key == "path":
            known = sorted(
                {k for section in sections for k in section.model_fields} - {"path"} | {"output_dtype"}
            )
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            raise InputError.about(
                f"option {key!r}",
                got=repr(value),
                expected="one of " + ", ".join(known),
                do=f"did you mean {near[0]!r}?" if near else None,
            )
        sections[owner][key] = value
    try:
        compute = ComputeOptions(**sections[ComputeOptions])
        output = OutputOptions(**sections[OutputOptions])
        cluster = ClusterOptions(**sections[ClusterOptions])
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError.about(
            f"option {first['loc'][0]}", got=repr(first["input"]), expected=first["msg"]
        ) from None
    return _job(problem, path.rstrip("/").rpartition("/")[2], output, compute, cluster)


def _job(
    problem: Problem,
    name: str,
    output: OutputOptions,
    compute: ComputeOptions,
    cluster: ClusterOptions,
    spec: JobSpec | None = None,
    folder: Path | None = None,
    modules: tuple[ModuleType, ...] = (),
) -> Job:
    problem = _prepared(problem, compute)
    return Job(problem, name, output, compute, cluster, spec, folder, modules)


def _prepared(problem: Problem, compute: ComputeOptions) -> Problem:
    """The problem as a job's options want it."""
    if compute.dtype is not None:
        problem = problem.to(dtype=getattr(torch, compute.dtype))
    problem = problem.with_leaves(problem.leaves) if compute.seed is None else problem.seeded(compute.seed)
    problem.tf32 = compute.tf32
    return problem


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


def _differences(record: RunRecord, job: Job) -> list[tuple[str, str, str]]:
    """(what, what the run has, what the job has) for everything that makes them different runs."""
    had = {**record.fingerprint, **record.options, **_that_compute(record.versions)}
    has = {**fingerprint(job.problem), **_result_options(job), **_that_compute(_versions())}
    return [(what, str(had.get(what)), str(has.get(what))) for what in _unlike(had, has)]


def _that_compute(versions: dict[str, str]) -> dict[str, str]:
    """The versions of what decides the last bits of J."""
    return {f"version of {name}": versions.get(name, "unknown") for name in ("torch", "jacjobs")}


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jacjobs", "torch", "pyarrow", "ray")},
    }


def _unlike(had: dict[str, Any], has: dict[str, Any]) -> list[str]:
    """The keys whose values differ, in their order."""
    return [what for what in dict.fromkeys([*had, *has]) if had.get(what) != has.get(what)]


def _plan_in(folder: RunFolder, record: RunRecord) -> Plan:
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


def _renewed(record: RunRecord, job: Job) -> RunRecord:
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


def _new_record(job: Job, plan: Plan, marks: dict[str, str]) -> RunRecord:
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
