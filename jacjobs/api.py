"""What Python programs and the command line call: plan, submit, resume, open."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

from jacjobs.autodiff.catalogue import COMPILED, strategy_named
from jacjobs.autodiff.check import CHECKERS
from jacjobs.autodiff.device import device_of, tf32_as_wished
from jacjobs.errors import InputError, RunDiffersError
from jacjobs.fingerprint import fingerprint
from jacjobs.job import Job, job_from_options, job_from_spec, prepared
from jacjobs.jobspec import parse_job
from jacjobs.planning.choice import Chooser, Resources, Timing
from jacjobs.planning.geometry import BLOCK_BYTES
from jacjobs.planning.options import ComputeOptions
from jacjobs.planning.planner import Facts, Plan, Planner, chooser_for
from jacjobs.planning.sparse import SparseChooser
from jacjobs.problem import Problem
from jacjobs.record import differences, new_record, plan_in, renewed, unlike
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

WORTH_BYTES = 256 << 20
"""A dense J of less is not looked at: finding its pattern takes a second or two. What kind of dataset a job
leaves must not depend on the machine, so this is not seconds."""
AUTO_SECONDS = 20.0
"""So long a look may take that nobody has asked for."""


def plan(problem: Problem, *, device: str | None = None, **options: Any) -> Plan:
    """The plan for `problem`, made without starting or writing anything.

    device:   plan for GPUs of this name ("H100 80GB"), whether there is one here or not.
    options:  strategy, chunk, memory, dtype, nonfinite, layout, compression, workers, cpus_per_worker, …: the
              keys of the job file's sections compute, output and cluster; `output_dtype` is output.dtype.

    Raises InputError for options that do not fit, or where memory or disk do not suffice; FunctionError where
    the function raises.
    """
    return plan_job(job_from_options(problem, "runs/unnamed", options), device)


def submit(problem: Problem, path: str | Path, **options: Any) -> Run:
    """Compute the Jacobian of `problem` into a dataset at `path`; the options are those of `plan`.

    Where strategy or chunk are left open and the job is long enough, they are timed on the device first: at
    most 5% of the predicted time, and 30 s. Returns then with the run (address `inline`: it runs when waited
    for). If `path` holds a run of the same problem and options, what it lacks is computed, with the plan that
    it began with.

    Raises InputError (RunDiffersError, if a run of another job is there) before anything is written.
    """
    return submit_job(job_from_options(problem, str(path), options))


def plan_job(job: Job, device: str | None = None) -> Plan:
    return _draft(job, device).predicted


def plan_of(path: str | Path) -> Plan:
    """The plan that the run at `path` began with. Runs no code of its job.

    Raises InputError where there is no run, or another version's.
    """
    folder = RunFolder(path)
    folder.require_run()
    return plan_in(folder, folder.record())


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
        differing = differences(record, job)
        if not differing:
            plan_in(folder, record)
            return _begin(job, folder, renewed(record, job))
        if not job.output.overwrite:
            raise RunDiffersError.checklist(folder.uri, differing)
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
    problem = prepared(problem, ComputeOptions(**given))
    differing = unlike(record.fingerprint, fingerprint(problem))
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
    plan_in(folder, record)
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
    record = new_record(job, plan, draft.marks)
    folder.create(record)
    return record
