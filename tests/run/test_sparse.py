"""Sparse jobs: as many products as groups, the same J as a dense one, and patterns that are wrong."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.sparse import csr_array, eye_array
from torch import Tensor
from torch.func import jacrev, vmap

import jacjobs
from jacjobs import Problem, SparseDataset
from jacjobs.errors import CheckError, FunctionError, InputError, NonFiniteError, StoreError
from jacjobs.planning import sparse as cutting
from jacjobs.structure.compression import Grouped
from tests.faults.job import actors, wait_for
from tests.structure import functions
from tests.structure.functions import randn

SIZE = 40
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "heat": functions.heat,
    "Burgers": functions.burgers,
    "differences": functions.differences(3),
    "differences and sums": functions.two_kinds(SIZE),
    "arrow": functions.arrow(SIZE),
    "arrow, transposed": lambda x: x.sin() * x[0],
    "with rows and columns of zeros": lambda x: torch.cat([x[:5].square(), x.new_zeros(3), x[9:12].cos()]),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(problem: Problem, path: Path, **options: Any) -> SparseDataset:
    options = {"structure": "sparse", "address": "inline", **options}
    J = jacjobs.submit(problem, path, **options).result(progress=False)
    assert isinstance(J, SparseDataset)
    return J


def check_equal(J: jacjobs.JacobianDataset, want: np.ndarray) -> None:
    np.testing.assert_allclose(J.to_numpy(), want, rtol=1e-12, atol=1e-12 * np.abs(want).max())


def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of single chunks, parts of few points."""
    monkeypatch.setattr(cutting, "SMALLEST_BLOCK_BYTES", 1)
    monkeypatch.setattr(cutting, "SMALLEST_PART_BYTES", 1)


@pytest.mark.parametrize(
    "strategy", ["auto", "vjp/vmap", "jvp/vmap", "vjp/loop", "jvp/repeat", "double-vjp/vmap", "vjp/repeat"]
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_the_jacobian(
    name: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch)
    fn, X = FUNCTIONS[name], randn(5, SIZE, seed=3)
    J = run(Problem(fn, (X,), in_dims=0), tmp_path / "run", strategy=strategy, chunk=2)
    want = vmap(jacrev(fn))(X).numpy()
    check_equal(J, want)
    assert len(J.part_names) > 1
    assert jacjobs.verify(tmp_path / "run", Problem(fn, (X,), in_dims=0)).sound
    for point in range(5):
        assert (J[point].toarray() == J.to_numpy()[point]).all()


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_both_kinds_of_products(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An arrow takes 3 products of both kinds in place of 400."""
    cut_small(monkeypatch)
    fn, X = functions.arrow(400), randn(2, 400, seed=3)
    J = run(Problem(fn, (X,), in_dims=0), tmp_path / "run", chunk=chunk)
    check_equal(J, vmap(jacrev(fn))(X).numpy())
    assert jacjobs.verify(tmp_path / "run", Problem(fn, (X,), in_dims=0)).sound
    plan = J.record.plan
    if chunk == 1:
        assert (plan["groups"]["columns"], plan["groups"]["rows"]) == (2, 1)
        assert plan["second"]["strategy"].startswith("vjp/")


def count_products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many seeds of groups are made from now on."""
    made: list[int] = []
    call = Grouped.__call__

    def counted(self: Grouped, start: int, stop: int, **like: Any) -> Tensor:
        made.append(stop - start)
        return call(self, start, stop, **like)

    monkeypatch.setattr(Grouped, "__call__", counted)
    return made


@pytest.mark.parametrize(
    ("fn", "size", "groups"),
    [(functions.brusselator, 2 * 16**2, 12), (functions.heat, 200, 3), (functions.differences(5), 100, 6)],
)
def test_as_many_products_are_made_as_there_are_groups(
    fn: Callable[[Tensor], Tensor],
    size: int,
    groups: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = Problem(fn, (randn(size),))
    run_of = jacjobs.submit(problem, tmp_path / "run", structure="sparse", address="inline")
    made = count_products(monkeypatch)
    J = run_of.result(progress=False)
    assert run_of.plan.groups is not None
    assert sum(made) == run_of.plan.groups.products <= groups
    check_equal(J, jacrev(fn)(randn(size)).numpy()[None])


def test_several_leaves_and_segments(tmp_path: Path) -> None:
    a, b = randn(6, 4, seed=1), randn(3, seed=2)

    def fn(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return inputs["a"].square(), inputs["a"].sum(1)[:3] * inputs["b"]

    J = run(Problem(fn, ({"a": a, "b": b},)), tmp_path / "run")
    want = jacrev(fn)({"a": a, "b": b})
    blocks = [[leaf["a"].reshape(-1, 24), leaf["b"].reshape(-1, 3)] for leaf in want]
    whole = torch.cat([torch.cat(block, 1) for block in blocks]).numpy()
    check_equal(J, whole[None])
    assert [segment.name for segment in J.inputs] == ["a", "b"]
    np.testing.assert_allclose(J[0, :, "b"].toarray(), whole[:, 24:])
    np.testing.assert_allclose(J.segment(input="b").to_numpy()[0], whole[:, 24:])
    np.testing.assert_allclose(J.tree()[1]["b"], want[1]["b"])


def test_what_points_have_of_their_own_counts_as_anything(tmp_path: Path) -> None:
    """A pattern of the first point's indices, and of its zeros, would be wrong at the others."""
    X, places, weights = randn(4, 30), torch.randint(30, (4, 20)), torch.zeros(4, 20, dtype=torch.float64)
    weights[1:] = 1

    def fn(x: Tensor, place: Tensor, weight: Tensor) -> Tensor:
        return torch.cat([x[place].square(), x[:20] * weight, x])

    args = (X, places, weights)
    with pytest.raises(InputError, match="counts as dense"):
        run(Problem(lambda x, p, w: x[p] * w.sum(), args, in_dims=0), tmp_path / "dense")
    problem = Problem(lambda x, p, w: fn(x, places[0], w), args, in_dims=0)
    J = run(problem, tmp_path / "run")
    want = vmap(jacrev(lambda x, w: fn(x, places[0], w)))(X, weights).numpy()
    check_equal(J, want)


# -- which it is ---------------------------------------------------------------------------------------------


def test_what_is_dense_is_refused_with_the_reason_where_sparse_is_asked_for(tmp_path: Path) -> None:
    def branches(x: Tensor) -> Tensor:
        return x.square() if x.sum() > 0 else x.sin()

    for fn, reason in (
        (lambda x: x.softmax(0), "100% of its entries"),
        (lambda x: x * torch.zeros(30, dtype=x.dtype), "none of its entries"),
        (branches, "cannot be traced"),
    ):
        with pytest.raises(InputError, match=reason):
            run(Problem(fn, (randn(30),)), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_it_is_found_where_that_pays_and_not_looked_for_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Problem(functions.brusselator, (randn(2 * 128**2),))
    plan = jacjobs.plan(large, workers=2)
    assert plan.groups is not None
    assert plan.groups.entries == 6 * 2 * 128**2
    assert jacjobs.plan(large, workers=2, structure="dense").seconds > 4 * plan.seconds
    assert jacjobs.plan(large, workers=2, layout="columns").groups is None

    monkeypatch.setattr("jacjobs.api.look", None)  # whoever looks fails
    assert jacjobs.plan(Problem(functions.brusselator, (randn(2 * 8**2),))).groups is None
    assert jacjobs.plan(large, workers=2, structure="dense").groups is None


def test_a_dense_j_that_does_not_fit_the_disk_is_no_obstacle(tmp_path: Path) -> None:
    plan = jacjobs.plan(Problem(functions.heat, (randn(3_000_000),)))
    assert plan.shape.total_bytes > 2**45
    assert plan.groups is not None
    assert plan.groups.products == 3


# -- wrong patterns ------------------------------------------------------------------------------------------


def beyond(x: Tensor) -> Tensor:
    """Of `heat`'s pattern, and where x[0] is negative of one entry more in two rows."""
    extra = torch.where(x[0] < 0, x[30], 0.0)
    return functions.heat(x) + torch.nn.functional.pad(extra.square()[None].expand(2), (3, SIZE - 5))


def tridiagonal() -> csr_array:
    return csr_array(sum(eye_array(SIZE, k=k) for k in (-1, 0, 1)))


@pytest.mark.parametrize("strategy", ["jvp/vmap", "vjp/vmap", "jvp/loop"])
def test_entries_that_a_pattern_lacks_are_seen_and_made(strategy: str, tmp_path: Path) -> None:
    X = randn(4, SIZE, seed=3)
    X[:, 0] = torch.tensor([1.0, -1.0, 1.0, -2.0])
    problem = Problem(beyond, (X,), in_dims=0, pattern=tridiagonal)
    want = vmap(jacrev(beyond))(X).numpy()

    naive = run(problem, tmp_path / "naive", strategy=strategy, check="off")
    assert np.abs(naive.to_numpy() - want).max() > 0.1  # what is lacking is added to others

    J = run(problem, tmp_path / "run", strategy=strategy)
    check_equal(J, want)
    manifest = J.manifest
    assert manifest is not None
    assert manifest.checks["blocks_recomputed"]
    assert any("the pattern lacks entries" in word for word in manifest.memory["retreats"])
    assert [J[point].nnz for point in range(4)] == [118, 120, 118, 120]
    assert jacjobs.verify(tmp_path / "run", problem).sound
    np.testing.assert_allclose(J.normal().toarray(), np.einsum("pij,pik->jk", want, want), atol=1e-10)


@pytest.mark.parametrize("transposed", [False, True])
def test_entries_that_a_pattern_of_both_kinds_lacks(transposed: bool, tmp_path: Path) -> None:
    def fn(x: Tensor) -> Tensor:
        arrow = functions.arrow(400)(x) if not transposed else x.sin() * x[0] + x.square()
        return torch.cat([arrow[:7], (arrow[7] + x[33].sin())[None], arrow[8:]])

    entries = np.eye(400)
    entries[0], entries[:, 0] = not transposed, 1
    if not transposed:
        entries[0] = 1
    x = randn(400, seed=3)
    problem = Problem(fn, (x,), pattern=csr_array(entries))
    want = jacrev(fn)(x).numpy()[None]
    naive = run(problem, tmp_path / "naive", chunk=1, check="off")
    assert naive.record.plan["second"] or transposed
    assert np.abs(naive.to_numpy() - want).max() > 0.1
    check_equal(run(problem, tmp_path / "run", chunk=1), want)


def test_a_column_that_the_pattern_lacks_altogether(tmp_path: Path) -> None:
    x = randn(20)
    entries = np.eye(20)
    entries[:, 4] = 0
    for strategy in ("jvp/vmap", "vjp/vmap"):
        problem = Problem(torch.sin, (x,), pattern=csr_array(entries))
        J = run(problem, tmp_path / strategy.replace("/", "-"), strategy=strategy)
        check_equal(J, torch.diag(x.cos()).numpy()[None])


def lacking(size: float = 2.0) -> tuple[Callable[[Tensor], Tensor], csr_array]:
    """A function with an entry (11, 30) of that size that its pattern lacks."""

    def fn(x: Tensor) -> Tensor:
        extra = torch.nn.functional.pad((size * x[30])[None], (11, SIZE - 12))
        return functions.heat(x) + extra.to(x.dtype)

    return fn, tridiagonal()


def test_a_run_that_is_carried_on_is_checked_at_every_point_as_before(tmp_path: Path) -> None:
    X = randn(6, SIZE, seed=3)
    X[:, 0] = torch.tensor([1.0, -1, -2, 1, 1, 1])
    problem = Problem(beyond, (X,), in_dims=0, pattern=tridiagonal())
    jacjobs.submit(problem, tmp_path / "run", address="inline", structure="sparse")  # and not waited for
    check_equal(run(problem, tmp_path / "run"), vmap(jacrev(beyond))(X).numpy())


@pytest.mark.parametrize("strategy", ["jvp/vmap", "vjp/vmap"])
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float32"},
        {"output_dtype": "float16"},
        {"output_dtype": "float32"},
        {"seed": 3},
        {"chunk": 1},
    ],
    ids=str,
)
def test_what_a_pattern_lacks_is_seen_in_other_precisions(
    options: dict[str, Any], strategy: str, tmp_path: Path
) -> None:
    fn, pattern = lacking()
    x = randn(SIZE, seed=3)
    J = run(Problem(fn, (x,), pattern=pattern), tmp_path / "run", strategy=strategy, **options)
    np.testing.assert_allclose(J.to_numpy()[0], jacrev(fn)(x).numpy(), atol=0.01)
    assert J[0][11, 30] == 2


def test_a_small_entry_that_a_pattern_lacks_is_seen_beside_large_ones(tmp_path: Path) -> None:
    fn, pattern = lacking()
    x = randn(SIZE, seed=3)
    scales = torch.ones(SIZE, dtype=torch.float64)
    scales[3] = 1e5
    problem = Problem(lambda x: fn(x) * scales.to(x.dtype), (x,), pattern=pattern)
    for strategy in ("jvp/vmap", "vjp/vmap"):
        J = run(problem, tmp_path / strategy.replace("/", "-"), strategy=strategy, dtype="float32")
        assert J[0][11, 30] == 2


def test_entries_that_are_not_finite_hide_none_that_a_pattern_lacks(tmp_path: Path) -> None:
    x = randn(SIZE, seed=3).abs()
    x[7] = 0

    def fn(x: Tensor) -> Tensor:
        root = torch.nn.functional.pad(x[7].sqrt()[None], (20, SIZE - 21))
        return lacking()[0](x) + root

    whole = csr_array(np.abs(jacrev(fn)(x).numpy()) > 0)
    for number, pattern in enumerate((tridiagonal(), csr_array(tridiagonal().toarray() + whole.toarray()))):
        for strategy in ("jvp/vmap", "vjp/vmap"):
            problem = Problem(fn, (x,), pattern=pattern)
            path = tmp_path / f"{number}{strategy[0]}"
            with pytest.raises(NonFiniteError, match="NaN or infinite"):
                run(problem, path, strategy=strategy)
            J = run(problem, path, strategy=strategy, nonfinite="warn")
            assert J[0][20, 7] == np.inf
            assert J[0][11, 30] == 2


def test_what_overflows_when_a_line_is_made_again_is_noticed(tmp_path: Path) -> None:
    fn, pattern = lacking(9e38)
    problem = Problem(fn, (randn(SIZE),), pattern=pattern)
    with pytest.raises(NonFiniteError, match=r"row 11, column 30; .*as more than float32"):
        run(problem, tmp_path / "run", output_dtype="float32")


class OnlyOnce(torch.autograd.Function):
    """Has no forward mode, and its backward cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return ctx.saved_tensors[0].cos() * gradient


def test_a_pattern_that_nothing_can_check_is_refused_unless_it_is_trusted(tmp_path: Path) -> None:
    problem = Problem(OnlyOnce.apply, (randn(20),), pattern=csr_array(np.eye(20)))
    with pytest.raises(InputError, match="no strategy can check"):
        run(problem, tmp_path / "run")
    check_equal(run(problem, tmp_path / "run", check="off"), np.diag(np.cos(randn(20).numpy()))[None])


def test_a_users_matrix_stays_as_it_is_and_its_values_do_not_matter(tmp_path: Path) -> None:
    raw = np.ones(3), np.array([1, 0, 1]), np.array([0, 2, 3])
    given = csr_array(tuple(part.copy() for part in raw), shape=(2, 2))
    problem = Problem(torch.sin, (randn(2),), pattern=given)
    run(problem, tmp_path / "run")
    for mine, there in zip(raw, (given.data, given.indices, given.indptr), strict=True):
        np.testing.assert_array_equal(mine, there)
    run(Problem(torch.sin, (randn(2),), pattern=csr_array([[5, 7], [0, -1]])), tmp_path / "run")


def test_a_pattern_means_sparse_and_is_looked_at(tmp_path: Path) -> None:
    problem = Problem(torch.sin, (randn(20),), pattern=csr_array(np.eye(20)))
    assert jacjobs.plan(problem).groups is not None
    assert jacjobs.plan(problem, structure="dense").groups is None
    with pytest.raises(InputError, match="Problem pattern"):
        jacjobs.plan(Problem(torch.sin, (randn(20),), pattern=csr_array(np.eye(3))))

    def broken() -> csr_array:
        raise ZeroDivisionError("of my own")

    with pytest.raises(FunctionError, match="while it made the pattern"):
        jacjobs.plan(Problem(torch.sin, (randn(20),), pattern=broken))
    with pytest.raises(InputError, match=r"output\.layout: got columns"):
        jacjobs.plan(problem, structure="sparse", layout="columns")


def test_randomness_of_a_seed_is_no_structure(tmp_path: Path) -> None:
    """The zeros of another mask than the one that every call makes would be."""

    def fn(x: Tensor) -> Tensor:
        kept = torch.rand(SIZE, dtype=torch.float64) > 0.5
        return torch.nn.functional.dropout(functions.heat(x), 0.5) + x.roll(2) * kept

    X = randn(3, SIZE)
    problem = Problem(fn, (X,), in_dims=0)
    J = run(problem, tmp_path / "run", seed=5, check="off")
    dense = jacjobs.submit(problem, tmp_path / "dense", seed=5, structure="dense", address="inline").result()
    assert (J.to_numpy() == dense.to_numpy()).all()


def test_row_groups_hold_several_points(tmp_path: Path) -> None:
    X = randn(500, 20)
    J = run(Problem(functions.heat, (X,), in_dims=0), tmp_path / "run")
    groups = [pq.read_metadata(tmp_path / "run" / name).num_row_groups for name in J.part_names]
    assert sum(groups) <= 2
    check_equal(J, vmap(jacrev(functions.heat))(X).numpy())
    np.testing.assert_array_equal(J[17, 3:5].toarray(), J.to_numpy()[17, 3:5])


class Wrong(torch.autograd.Function):
    """Its derivative is that of 2 sin in reverse mode alone."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].cos() * gradient

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return ctx.saved_tensors[0].cos() * tangent


def test_a_derivative_that_is_wrong_is_not_taken_for_a_pattern_that_is(tmp_path: Path) -> None:
    problem = Problem(Wrong.apply, (randn(20),), pattern=csr_array(np.eye(20)))
    with pytest.raises((CheckError, InputError), match=r"custom derivative|does not support"):
        run(problem, tmp_path / "run", strategy="jvp/loop")


@pytest.mark.parametrize("given", [np.eye(5), csr_array(np.eye(4)), 3])
def test_a_pattern_that_is_none_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Problem pattern"):
        run(Problem(torch.sin, (randn(5),), pattern=given), tmp_path / "run")


# -- what runs are -------------------------------------------------------------------------------------------


def test_entries_that_are_not_finite_are_named(tmp_path: Path) -> None:
    x = randn(20).abs()
    x[7] = 0
    problem = Problem(lambda x: torch.cat([x.square(), x.sqrt()]), (x,))
    with pytest.raises(NonFiniteError, match="point 0, row 27, column 7"):
        run(problem, tmp_path / "run")
    J = run(problem, tmp_path / "run", nonfinite="warn")
    assert np.isinf(J[0][27, 7])
    assert np.isinf(J.to_numpy()).sum() == 1
    assert J.portrait().nonfinite == 1


def test_a_run_that_lacks_parts_is_finished_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch)
    problem = Problem(functions.burgers, (randn(6, SIZE),), in_dims=0)
    J = run(problem, tmp_path / "run", chunk=1)
    before = {name: (tmp_path / "run" / name).read_bytes() for name in J.part_names}
    assert len(before) > 2
    for name in J.part_names[1:]:
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "_jacjobs" / "manifest.json").unlink()
    J = run(problem, tmp_path / "run", chunk=1)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in J.part_names} == before


def test_a_run_without_its_pattern_is_not_carried_on(tmp_path: Path) -> None:
    problem = Problem(functions.burgers, (randn(6, SIZE),), in_dims=0)
    J = run(problem, tmp_path / "run")
    check_equal(J, vmap(jacrev(functions.burgers))(randn(6, SIZE)).numpy())
    (tmp_path / "run" / J.part_names[0]).unlink()
    (tmp_path / "run" / "_jacjobs" / "manifest.json").unlink()
    kept = tmp_path / "run" / "_jacjobs" / "pattern.npz"
    raw = kept.read_bytes()
    for damaged in (raw[:-1], raw[:50] + b"?" + raw[51:]):
        kept.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"pattern\.npz is not the one"):
            run(problem, tmp_path / "run")
    kept.unlink()
    with pytest.raises(StoreError, match=r"pattern\.npz"):
        run(problem, tmp_path / "run")


def test_another_pattern_is_another_run(tmp_path: Path) -> None:
    problem = Problem(torch.sin, (randn(20),), pattern=csr_array(np.eye(20)))
    run(problem, tmp_path / "run")
    run(problem, tmp_path / "run")
    other = Problem(torch.sin, (randn(20),), pattern=csr_array(np.eye(20) + np.eye(20, k=1)))
    with pytest.raises(InputError, match="pattern"):
        run(other, tmp_path / "run")


def test_blocks_come_point_by_point(tmp_path: Path) -> None:
    X = randn(3, SIZE)
    handle = jacjobs.submit(
        Problem(functions.heat, (X,), in_dims=0), tmp_path / "run", structure="sparse", address="inline"
    )
    want = vmap(jacrev(functions.heat))(X).numpy()
    seen = []
    for block in handle:
        seen.append(block.rectangle.point_start)
        (matrix,) = block.values
        np.testing.assert_allclose(matrix.toarray(), want[seen[-1]], atol=1e-12)
    assert sorted(seen) == [0, 1, 2]


def test_single_precision_and_another_dtype_on_disk(tmp_path: Path) -> None:
    x = randn(SIZE)
    J = run(Problem(functions.heat, (x,)), tmp_path / "a", dtype="float32")
    assert J.dtype == np.float32
    np.testing.assert_allclose(J.to_numpy()[0], jacrev(functions.heat)(x).numpy(), rtol=1e-5, atol=1e-5)
    J = run(Problem(functions.heat, (x,)), tmp_path / "b", output_dtype="float16")
    assert J.dtype == np.float16
    np.testing.assert_allclose(J.to_numpy()[0], jacrev(functions.heat)(x).numpy(), rtol=1e-3)
    v = np.ones(SIZE)
    np.testing.assert_allclose(J @ v, (J.to_numpy().astype(float) @ v), rtol=1e-5, atol=1e-5)


# -- on Ray --------------------------------------------------------------------------------------------------


def slowly_beyond(x: Tensor) -> Tensor:
    time.sleep(0.02)
    return beyond(x)


def parts(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.glob("part-*")}


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["worker", "assembler"])
def test_on_ray_who_dies_changes_no_byte(
    victim: str, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job whose pattern is wrong at every second point."""
    cut_small(monkeypatch)
    X = randn(40, SIZE, seed=3)
    X[:, 0] = torch.tensor([1.0, -1.0]).repeat(20)
    problem = Problem(slowly_beyond, (X,), in_dims=0, pattern=tridiagonal())
    options = {"strategy": "jvp/loop", "structure": "sparse"}
    jacjobs.submit(problem, tmp_path / "quiet", address="inline", **options).wait()
    run_of = jacjobs.submit(problem, tmp_path / "run", workers=2, **options)
    wait_for(lambda: len(parts(tmp_path / "run")) > 2, 60)
    for actor in actors({"worker": "WorkerActor", "assembler": "AssemblerActor"}[victim])[:1]:
        actor.send_signal(signal.SIGKILL)
    manifest = run_of.wait()
    assert manifest.attempts[-1].failures_total
    assert parts(tmp_path / "run") == parts(tmp_path / "quiet")
    assert len(manifest.parts) > 5
    check_equal(jacjobs.open(tmp_path / "run"), vmap(jacrev(beyond))(X).numpy())


def test_a_compiled_strategy(tmp_path: Path) -> None:
    X = randn(3, SIZE)
    problem = Problem(functions.heat, (X,), in_dims=0)
    J = run(problem, tmp_path / "run", strategy="jvp/compiled", chunk=3)
    check_equal(J, vmap(jacrev(functions.heat))(X).numpy())
    assert J.record.plan["strategy"] == "jvp/compiled"
