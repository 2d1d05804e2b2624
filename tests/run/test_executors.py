"""One contract for both executors: the same bytes, the same errors, the same stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from torch.func import jacrev, vmap

import jacjobs
from jacjobs import api
from jacjobs.errors import (
    FunctionError,
    IncompleteError,
    InputError,
    NonFiniteError,
    RunDiffersError,
    StoreError,
)
from jacjobs.job import job_from_options
from jacjobs.planning import geometry
from jacjobs.planning.planner import Plan
from jacjobs.record import new_record
from jacjobs.run import inline
from jacjobs.run.cluster.actors import Payload
from jacjobs.run.cluster.executor import Call, RayExecutor
from jacjobs.run.cluster.session import Placement
from jacjobs.run.coordinator import Coordinator, part_metadata
from jacjobs.run.messages import AssemblerJoined, AssemblerLost, BlockId, Event, StartAssembler
from jacjobs.run.roster import MOST_IN_FLIGHT
from jacjobs.store.folder import Manifest, RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
X = torch.linspace(-1, 1, 60_000, dtype=torch.float64).reshape(6000, 10)
W = torch.linspace(0, 1, 70, dtype=torch.float64).reshape(7, 10)


def fn(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(W @ x) * x.sum()


def options(address: str) -> dict[str, Any]:
    return {"address": address, **({} if address == "inline" else {"workers": 2})}


def contents(path: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in path.glob("part-*.parquet")}


@pytest.fixture(params=["inline", "local"])
def address(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_equals_jacrev_and_the_other_executor(address: str, tmp_path: Path) -> None:
    problem = jacjobs.Problem(fn, (X,), in_dims=0)
    J = jacjobs.submit(problem, tmp_path / "a", **options(address)).result()
    np.testing.assert_allclose(J.to_numpy(), vmap(jacrev(fn))(X).numpy(), rtol=1e-12, atol=1e-14)
    jacjobs.submit(problem, tmp_path / "b", address="inline").wait()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert J.manifest is not None
    assert {p.name for p in J.manifest.parts} == set(contents(tmp_path / "a"))
    assert not list((tmp_path / "a" / "_jacjobs" / "scratch").iterdir())
    assert not (tmp_path / "a" / "_jacjobs" / "lock.json").exists()


def test_a_large_matrix_is_cut_into_rows(address: str, tmp_path: Path) -> None:
    A = torch.randn(2000, 500)
    problem = jacjobs.Problem(lambda x: torch.sin(A @ x), (torch.randn(500),))
    run = jacjobs.submit(problem, tmp_path / "a", chunk=100, **options(address))
    assert run.plan.tiling.blocks > 2
    J = run.result()
    want = jacrev(problem.fn)(problem.leaves[0]).numpy()
    np.testing.assert_allclose(J[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", ["jvp/vmap", "double-vjp/vmap", "jvp/loop"])
def test_columns_are_put_together_into_rows(address: str, strategy: str, tmp_path: Path) -> None:
    """One tall matrix: blocks are ranges of columns, and every record is still a row."""
    A = torch.randn(20_000, 50)
    problem = jacjobs.Problem(lambda x: torch.sin(A @ x), (torch.randn(50),))
    run = jacjobs.submit(problem, tmp_path / "a", strategy=strategy, chunk=7, **options(address))
    assert run.plan.tiling.splits_lines
    assert run.plan.tiling.blocks > 2
    J = run.result()
    want = jacrev(problem.fn)(problem.leaves[0]).numpy()
    np.testing.assert_allclose(J[0], want, rtol=1e-5, atol=1e-5)
    assert J.manifest is not None
    assert J.manifest.checks["points"] == run.plan.tiling.blocks
    assert J.manifest.checks["worst_relative_error"] < 1e-4
    jacjobs.submit(problem, tmp_path / "b", strategy=strategy, chunk=7, address="inline").wait()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("strategy", ["vjp/vmap", "jvp/vmap"])
def test_every_way_of_assembly_gives_the_same_j(
    address: str, strategy: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products along the lines, or across them: put together in memory, or from spills. Three points."""
    A = torch.randn(1500, 200, dtype=torch.float64)
    problem = jacjobs.Problem(lambda x: torch.sin(A @ x), (torch.randn(3, 200).double(),), in_dims=0)
    want = vmap(jacrev(problem.fn))(problem.leaves[0]).numpy()
    monkeypatch.setattr(geometry, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(geometry, "SMALLEST_PART_BYTES", 1 << 20)
    run = jacjobs.submit(
        problem, tmp_path / "a", strategy=strategy, layout=layout, chunk=8, **options(address)
    )
    crossed = strategy.startswith("vjp") == (layout == "columns")
    assert run.plan.tiling.spills == crossed
    assert run.plan.tiling.parts >= 6 or not crossed
    J = run.result()
    np.testing.assert_allclose(J.to_numpy(), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(J.tree(), want, rtol=1e-12, atol=1e-12)
    assert J.record.layout == layout
    assert not list((tmp_path / "a" / "_jacjobs" / "scratch").iterdir())
    assert not (tmp_path / "a" / "_jacjobs" / "spills").exists()
    assert jacjobs.verify(tmp_path / "a", problem).sound
    other = jacjobs.Problem(problem.fn, (torch.randn(3, 200).double(),), in_dims=0)
    assert "argument" in str(jacjobs.verify(tmp_path / "a", other).faults[0])


def test_a_run_that_spills_is_resumed_from_its_spills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while blocks are computed, and while parts are transposed: what is there is not computed
    again, and the bytes are the same.
    """
    monkeypatch.setattr(geometry, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(geometry, "SMALLEST_PART_BYTES", 5 << 19)
    A = torch.randn(4000, 300, dtype=torch.float64)
    calls = {"compute": 0, "transpose": 0}

    def submit(name: str, compute: float = float("inf"), transpose: float = float("inf")) -> api.Run:
        limits = {"compute": compute, "transpose": transpose}
        calls.update(compute=0, transpose=0)
        for kind, owner in (("compute", inline.Worker), ("transpose", inline.Assembler)):

            def limited(self: Any, what: Any, kind: str = kind, plain: Any = plain[kind]) -> Any:
                calls[kind] += 1
                if calls[kind] > limits[kind]:
                    raise StoreError("the power is gone")
                return plain(self, what)

            monkeypatch.setattr(owner, kind, limited)
        problem = jacjobs.Problem(lambda x: torch.sin(A @ x), (torch.linspace(0, 1, 300).double(),))
        return jacjobs.submit(problem, tmp_path / name, strategy="jvp/vmap", chunk=20, address="inline")

    plain = {"compute": inline.Worker.compute, "transpose": inline.Assembler.transpose}
    whole = submit("whole")
    whole.wait()
    tiling = whole.plan.tiling
    assert (tiling.blocks, tiling.parts) == (calls["compute"], calls["transpose"])
    assert (tiling.bundles, tiling.spill_blocks) == (4, 4)
    done = tiling.spill_blocks * 2 + 1
    with pytest.raises(StoreError):
        submit("cut", compute=done).wait()
    assert len(list((tmp_path / "cut" / "_jacjobs" / "spills").iterdir())) == 2
    with pytest.raises(StoreError):
        submit("cut", transpose=2).wait()
    assert calls["compute"] == tiling.blocks - 2 * tiling.spill_blocks
    assert len(contents(tmp_path / "cut")) == 2
    submit("cut").wait()
    assert calls == {"compute": 0, "transpose": tiling.parts - 2}
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "another run's"])
def test_a_damaged_spill_is_named_and_never_becomes_a_part(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "IN_MEMORY_BYTES", 0)
    A = torch.randn(2000, 300, dtype=torch.float64)
    plain = inline.Assembler.transpose

    def submit(name: str, scale: float = 1.0, *, stop: bool = False) -> api.Run:
        def transpose(self: Any, part: int) -> Any:
            if stop:
                raise StoreError("the power is gone")
            return plain(self, part)

        monkeypatch.setattr(inline.Assembler, "transpose", transpose)
        x = scale * torch.linspace(0, 1, 300).double()
        problem = jacjobs.Problem(lambda x: torch.sin(A @ x), (x,))
        return jacjobs.submit(problem, tmp_path / name, strategy="jvp/vmap", chunk=20, address="inline")

    for name, scale in (("cut", 1.0), ("other", 2.0)):
        with pytest.raises(StoreError, match="power"):
            submit(name, scale, stop=True).wait()
    spill = sorted((tmp_path / "cut" / "_jacjobs" / "spills").iterdir())[0]
    content = bytearray(spill.read_bytes())
    if damage == "a flipped bit":
        content[12_345] ^= 4
    elif damage == "cut short":
        del content[-100_000:]
    else:
        content = bytearray((tmp_path / "other" / "_jacjobs" / "spills" / spill.name).read_bytes())
    spill.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{spill.name} is damaged, or another run's; remove it"):
        submit("cut").wait()
    assert not contents(tmp_path / "cut")
    spill.unlink()
    submit("cut").wait()
    submit("whole").wait()
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_submitting_a_complete_run_again_changes_nothing_and_blesses_no_damage(tmp_path: Path) -> None:
    problem = jacjobs.Problem(fn, (X,), in_dims=0)
    first = jacjobs.submit(problem, tmp_path / "a", address="inline").wait()
    manifest = tmp_path / "a" / "_jacjobs" / "manifest.json"
    text = manifest.read_bytes()
    assert jacjobs.submit(problem, tmp_path / "a", address="inline").wait() == first
    assert manifest.read_bytes() == text
    part = tmp_path / "a" / first.parts[0].name
    content = part.read_bytes()
    part.write_bytes(content[:-300] + bytes([content[-300] ^ 1]) + content[-299:])
    with pytest.raises(StoreError, match=f"{part.name} was changed since it was written"):
        jacjobs.submit(problem, tmp_path / "a", address="inline").wait()
    part.unlink()
    again = jacjobs.submit(problem, tmp_path / "a", address="inline").wait()
    assert part.read_bytes() == content
    assert again.parts == first.parts
    assert again.checks["points"] >= first.checks["points"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_j_is_stored_as_asked(dtype: str, tmp_path: Path) -> None:
    """And checked as what it is: rounding to the stored dtype is no error."""
    problem = jacjobs.Problem(fn, (X[:50],), in_dims=0)
    want = vmap(jacrev(fn))(X[:50]).numpy()
    J = jacjobs.submit(problem, tmp_path / "a", output_dtype=dtype, check="all", address="inline").result()
    assert J.dtype == dtype
    np.testing.assert_allclose(J.to_numpy(), want.astype(dtype), rtol=2 * np.finfo(dtype).eps, atol=1e-14)
    assert J.manifest is not None
    assert J.manifest.checks["blocks_recomputed"] == []
    metadata = pq.read_schema(tmp_path / "a" / J.part_names[0]).metadata
    assert metadata[b"jacjobs.dtype"].decode() == dtype
    assert metadata[b"jacjobs.origin"] == b"float64"
    assert jacjobs.verify(tmp_path / "a", problem).sound


def test_bfloat16_is_stored_exactly_as_float32_and_says_where_it_comes_from(tmp_path: Path) -> None:
    problem = jacjobs.Problem(torch.tanh, (torch.linspace(-1, 1, 40).bfloat16().reshape(10, 4),), in_dims=0)
    J = jacjobs.submit(problem, tmp_path / "a", address="inline").result()
    want = vmap(jacrev(torch.tanh))(problem.leaves[0]).float().numpy()
    np.testing.assert_array_equal(J.to_numpy(), want)
    assert J.dtype == "float32"
    assert J.record.shape.origin == "bfloat16"
    metadata = pq.read_schema(tmp_path / "a" / J.part_names[0]).metadata
    assert metadata[b"jacjobs.origin"] == b"bfloat16"


def test_compression_is_chosen_by_what_it_saves(tmp_path: Path) -> None:
    sparse = jacjobs.Problem(lambda x: x**2, (torch.randn(20, 64),), in_dims=0)
    dense = jacjobs.Problem(lambda x: torch.sin(W.float() @ x), (torch.randn(20, 10),), in_dims=0)
    assert jacjobs.plan(sparse).compression == "zstd"
    assert jacjobs.plan(dense).compression == "none"
    assert jacjobs.plan(sparse, compression="lz4").compression == "lz4"
    run = jacjobs.submit(sparse, tmp_path / "a", address="inline")
    assert run.result().record.plan["compression"] == "zstd"
    column = pq.ParquetFile(tmp_path / "a" / run.result().part_names[0]).metadata.row_group(0).column(3)
    assert column.compression == "ZSTD"


def test_forward_mode_is_chosen_for_tall_matrices_and_says_why_not(tmp_path: Path) -> None:
    problem = jacjobs.Problem(lambda x: torch.cdist(x[:, None], x[:, None]).reshape(-1), (torch.randn(30),))
    made = jacjobs.plan(problem)
    assert made.strategy == "double-vjp/vmap"
    reasons = {c.strategy: c.reason for c in made.candidates}
    assert reasons["jvp/vmap"] == "no forward-mode rule for _euclidean_dist"
    assert jacjobs.plan(jacjobs.Problem(lambda x: torch.outer(x, x).sin(), (X[0],))).strategy == "jvp/vmap"
    with pytest.raises(InputError, match=r"jvp/loop, which this function does not support \(no forward-mode"):
        jacjobs.plan(problem, strategy="jvp/loop")


def test_dropout_with_a_seed_is_one_function_everywhere(address: str, tmp_path: Path) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(torch.tanh(W @ x), 0.5, training=True)

    problem = jacjobs.Problem(fn, (X,), in_dims=0)
    with pytest.raises(InputError, match="two different results"):
        jacjobs.submit(problem, tmp_path / "a", **options(address))
    J = jacjobs.submit(problem, tmp_path / "a", seed=5, **options(address)).result().to_numpy()
    zero = (J == 0).all(2)
    assert (zero == zero[0]).all(), "every point has the same mask"
    assert 0 < zero[0].sum() < 7


def test_the_users_error_comes_with_their_traceback(address: str, tmp_path: Path) -> None:
    def picky(x: torch.Tensor) -> torch.Tensor:
        if x[0] > 0.5:
            raise ZeroDivisionError("not this point")
        return x * 2

    problem = jacjobs.Problem(picky, (X,), in_dims=0)
    with pytest.raises(FunctionError, match="ZeroDivisionError: not this point") as caught:
        jacjobs.submit(problem, tmp_path / "a", strategy="vjp/loop", **options(address)).wait()
    assert "points" in str(caught.value)
    assert "picky" in caught.value.user_traceback.splitlines()[1]


def test_nan_is_an_error_unless_allowed(address: str, tmp_path: Path) -> None:
    x = torch.ones(3, 4)
    x[1, 2] = 0
    problem = jacjobs.Problem(torch.sqrt, (x,), in_dims=0)
    with pytest.raises(NonFiniteError, match=r"4 entries .* point 1, row 0, column 2"):
        jacjobs.submit(problem, tmp_path / "a", **options(address)).wait()
    # The run is there, unfinished: it goes on with the other answer, as the message says.
    J = jacjobs.submit(problem, tmp_path / "a", nonfinite="allow", **options(address)).result()
    assert np.isinf(J[1][2, 2])


def test_resume_computes_only_what_is_missing(address: str, tmp_path: Path) -> None:
    A = torch.randn(3000, 6000)
    problem = jacjobs.Problem(lambda x: torch.sin(A @ x), (torch.randn(6000),))
    jacjobs.submit(problem, tmp_path / "a", **options(address)).wait()
    before = contents(tmp_path / "a")
    assert len(before) > 1
    (tmp_path / "a" / "_jacjobs" / "manifest.json").unlink()
    lost = sorted(before)[1]
    (tmp_path / "a" / lost).unlink()
    kept = {name: (tmp_path / "a" / name).stat().st_mtime_ns for name in before if name != lost}
    jacjobs.submit(problem, tmp_path / "a", **options(address)).wait()
    assert contents(tmp_path / "a") == before
    assert kept == {name: (tmp_path / "a" / name).stat().st_mtime_ns for name in kept}


def test_another_job_in_the_same_place_is_refused_with_a_checklist(address: str, tmp_path: Path) -> None:
    jacjobs.submit(jacjobs.Problem(torch.sin, (X[:5],)), tmp_path / "a", **options(address)).wait()
    other = jacjobs.Problem(torch.sin, (X[1:6],))
    with pytest.raises(RunDiffersError) as caught:
        jacjobs.submit(other, tmp_path / "a", chunk=3, **options(address))
    listed = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in listed] == ["argument 0", "chunk"]
    J = jacjobs.submit(other, tmp_path / "a", chunk=3, overwrite=True, **options(address)).result()
    np.testing.assert_allclose(J[0].diagonal(), torch.cos(X[1:6]).numpy().reshape(-1))


def test_unknown_options_are_refused(address: str, tmp_path: Path) -> None:
    problem = jacjobs.Problem(torch.sin, (X[:5],))
    with pytest.raises(InputError, match="option 'chunks'"):
        jacjobs.submit(problem, tmp_path / "a", chunks=3, **options(address))
    with pytest.raises(InputError, match="option chunk: got 0"):
        jacjobs.submit(problem, tmp_path / "a", chunk=0, **options(address))
    assert not (tmp_path / "a").exists()


def test_more_workers_than_the_cluster_has_are_refused(tmp_path: Path) -> None:
    problem = jacjobs.Problem(torch.sin, (X[:5],))
    with pytest.raises(InputError, match="at most 4"):
        jacjobs.submit(problem, tmp_path / "a", workers=99)
    assert not (tmp_path / "a").exists()


HERE = os.getpid()


def deadly_problem(points: int, killer: int) -> jacjobs.Problem:
    """A block a point, four to a part; the function kills the process at point `killer`, but not this one."""
    A = torch.randn(100, 20_000)

    def deadly(x: torch.Tensor) -> torch.Tensor:
        if os.getpid() != HERE and x[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.sin(A @ x)

    X = torch.zeros(points, 20_000)
    X[killer, 0] = 1
    return jacjobs.Problem(deadly, (X,), in_dims=0)


def test_workers_that_die_of_a_block_end_with_its_name(tmp_path: Path) -> None:
    """A process that vanishes takes nothing else along: the other parts are there."""
    problem = deadly_problem(points=24, killer=13)
    run = jacjobs.submit(problem, tmp_path / "a", strategy="vjp/vmap", chunk=100, workers=2)
    with pytest.raises(IncompleteError, match="points 13:14"):
        run.wait()
    assert run.plan.tiling.parts == 6
    assert len(contents(tmp_path / "a")) == 5


class LateExecutor(RayExecutor):
    """Looks only when all that was asked for has been answered, so that one look brings much at once."""

    def poll(self, timeout_seconds: float) -> Iterator[Event]:
        ray.wait(list(self._calls), num_returns=len(self._calls), timeout=2.0, fetch_local=False)
        return super().poll(timeout_seconds)


def test_a_loss_that_comes_together_with_the_workers_last_block(tmp_path: Path) -> None:
    """What the worker computed is kept, and nothing more is asked of it."""
    problem = deadly_problem(points=12, killer=1)
    job = job_from_options(problem, str(tmp_path / "a"), {"strategy": "vjp/vmap", "chunk": 100})
    record = new_record(job, api.plan_job(job), {})
    folder = RunFolder(tmp_path / "a")
    folder.create(record)
    metadata = part_metadata(record)
    plan = Plan.model_validate(record.plan)
    coordinator = Coordinator(
        record,
        folder.uri,
        lambda: LateExecutor(Payload.pack(problem), plan, folder.uri, metadata, Placement(1, 1, 0)),
        workers=1,
    )
    with pytest.raises(IncompleteError, match="points 1:2"):
        coordinator.run()
    assert len(contents(tmp_path / "a")) == 2


class CountingExecutor(RayExecutor):
    """Says how many blocks each call was about."""

    sizes: ClassVar[list[int]] = []

    def _send(self, name: str) -> None:
        self.sizes.append(len(self._gathered[name]))
        super()._send(name)


def test_tiny_blocks_travel_together_and_one_that_kills_its_worker_harms_no_other(tmp_path: Path) -> None:
    points, died = 1200, tmp_path / "died"

    def fn(x: torch.Tensor) -> torch.Tensor:
        if os.getpid() != HERE and x == 700 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.sin(x)

    problem = jacjobs.Problem(fn, (torch.arange(points, dtype=torch.float64)[:, None],), in_dims=0)
    job = job_from_options(problem, "unnamed", {"strategy": "vjp/loop", "chunk": 1, "check": "off"})
    tiling = geometry.Tiling(
        points=points,
        rows=1,
        columns=1,
        part_points=points // 4,
        part_lines=1,
        block_points=1,
        block_rows=1,
        block_columns=1,
    )
    record = new_record(job, api.plan_job(job).model_copy(update={"tiling": tiling}), {})
    plan, metadata = Plan.model_validate(record.plan), part_metadata(record)

    def run(name: str, executor: Any, *arguments: Any) -> Manifest:
        folder = RunFolder(tmp_path / name)
        folder.create(record)
        ours = executor(*arguments, plan, folder.uri, metadata)
        return Coordinator(record, folder.uri, lambda: ours, workers=2 - (name == "whole")).run()

    run("whole", inline.InlineExecutor, problem)
    CountingExecutor.sizes.clear()
    counting = partial(CountingExecutor, placement=Placement(2, 1, 0))
    attempt = run("a", counting, Payload.pack(problem)).attempts[-1]
    assert died.exists()
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")
    assert attempt.failures_total == 1
    assert attempt.blocks_repeated <= MOST_IN_FLIGHT
    assert len(CountingExecutor.sizes) < points, "of two calls a block, if each went alone"
    assert 2 <= max(CountingExecutor.sizes) <= MOST_IN_FLIGHT // 2


def test_an_assembler_that_raises_is_taken_for_lost_since_it_gave_its_bundle_up(tmp_path: Path) -> None:
    """And an executor that waits for nothing does not spin."""

    @ray.remote
    def absorb() -> None:
        raise MemoryError("no room for a block")

    problem = jacjobs.Problem(fn, (X[:10],), in_dims=0)
    plan = jacjobs.plan(problem)
    executor = RayExecutor(Payload.pack(problem), plan, str(tmp_path), {"run": "0"}, Placement(1, 1, 0))
    start = time.monotonic()
    assert list(executor.poll(0.3)) == []
    assert time.monotonic() - start > 0.2
    executor.execute([StartAssembler()])
    event = next(iter(executor.poll(60)))
    assert isinstance(event, AssemblerJoined)
    assert event.assembler == "assembler-0"
    executor._calls[absorb.remote()] = Call("absorb", "assembler-0", (("worker-1", BlockId(0, 0)),))
    (event,) = executor.poll(60)
    executor.close()
    assert isinstance(event, AssemblerLost)
    assert "no room for a block" in event.cause
