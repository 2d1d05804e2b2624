"""A J larger than the memory that there is: assembled, and used by SciPy, in processes with a limit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jacjobs.planning.geometry import records_in_a_group, tile
from jacjobs.planning.planner import Plan
from jacjobs.run.assembler import Assembler
from jacjobs.run.messages import BlockId
from jacjobs.shape import JacobianShape
from jacjobs.store.schema import part_name
from tests.store.datasets import METADATA, finish, make_run, plan_of

MIB = 1 << 20
ROWS, COLUMNS = 131_072, 4096
LIMIT_MIB = 512
LARGER_ROWS = 2 * ROWS
S = np.array([5.0, 3.0, 1.0])
"""The singular values: J = U diag(S) Vᵀ, with cosines in U and V."""


def cosines(size: int) -> np.ndarray:
    """Orthonormal vectors, shape (size, 3): of the discrete cosine transform."""
    angles = np.pi * (np.arange(size)[:, None] + 0.5) * np.arange(1, 4) / size
    return np.sqrt(2 / size) * np.cos(angles)


def run_limited(code: str, limit_mib: int, *arguments: str) -> str:
    """Run it in a process whose heap, private mappings and threads' stacks together may take so much.

    Some 200 MiB of that are libraries: NumPy's and SciPy's BLAS, and Arrow.
    """
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_DATA, ({limit_mib << 20},) * 2)\n" + code
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        # Arrow's own allocator reserves a gigabyte that it does not use, which counts; so do the buffers of
        # each thread of BLAS, of which a product of a matrix and a vector has no use.
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("large")


@pytest.fixture(scope="module")
def larger(folder: Path) -> Path:
    """4 GiB of float32, of rank 3: the same 2 GiB twice."""
    plan = plan_with(LARGER_ROWS)
    run, tiling = make_run(folder / "larger", plan), plan.tiling
    assembler = Assembler(run.uri, plan, METADATA)
    U = np.tile(cosines(ROWS).astype(np.float32), (2, 1))
    V = (cosines(COLUMNS) * S).astype(np.float32)
    for bundle in range(tiling.bundles):
        for position in range(tiling.blocks_in(bundle)):
            block = tiling.block(bundle, position)
            values = U[block.row_start : block.row_stop] @ V.T
            assembler.absorb(BlockId(bundle, position), values[None])
    finish(run, plan)
    return folder / "larger"


@pytest.fixture(scope="module")
def large(larger: Path, folder: Path) -> Path:
    """Its first half: the same files."""
    plan = plan_with(ROWS)
    run = make_run(folder / "large", plan)
    for number in range(plan.tiling.parts):
        name = part_name(plan.tiling.part(number))
        (folder / "large" / name).hardlink_to(larger / name)
    finish(run, plan)
    return folder / "large"


def plan_with(rows: int) -> Plan:
    shape = JacobianShape(points=1, rows=rows, columns=COLUMNS, dtype="float32", outputs=(), inputs=())
    return plan_of(tile(shape, 64), group_records=records_in_a_group(COLUMNS, 4))


WHOLE = """
import sys, jacjobs
try:
    jacjobs.open(sys.argv[1]).to_numpy()
except MemoryError:
    print("no memory")
"""
DECOMPOSED = """
import sys, numpy as np, jacjobs
from scipy.sparse.linalg import lsqr, svds
J = jacjobs.open(sys.argv[1]).linear_operator()
print(*svds(J, k=2, ncv=6, tol=1e-4, return_singular_vectors=False, random_state=0))
b = J @ (np.arange(4096.0) / 4096)
x = lsqr(J, b, atol=1e-8, btol=1e-8, iter_lim=20)[0]
np.save(sys.argv[2], x)
"""


@pytest.mark.timeout(300)
def test_svds_and_lsqr_on_a_j_four_times_larger_than_the_memory(large: Path, tmp_path: Path) -> None:
    """And the limit is one: all of J does not fit it."""
    assert ROWS * COLUMNS * 4 == 4 * LIMIT_MIB * MIB
    assert run_limited(WHOLE, LIMIT_MIB, str(large)) == "no memory\n"
    printed = run_limited(DECOMPOSED, LIMIT_MIB, str(large), str(tmp_path / "x.npy"))
    np.testing.assert_allclose(sorted(map(float, printed.split())), [3, 5], rtol=1e-4)
    V = cosines(COLUMNS)
    least_norm = V @ (V.T @ (np.arange(COLUMNS) / COLUMNS))  # what lsqr finds: nothing outside V
    found = np.load(tmp_path / "x.npy")
    np.testing.assert_allclose(found, least_norm, atol=1e-4 * np.abs(least_norm).max())


SHOWN = """
import sys
from pathlib import Path
from jacjobs.cli.app import main
sys.argv = ["jacjobs", "show", sys.argv[1], "--plot", sys.argv[2]]
try:
    main()
finally:
    status = Path("/proc/self/status").read_text()
    print("peak", int(status.split("VmHWM:")[1].split()[0]) >> 10, "MiB")
"""


@pytest.mark.timeout(300)
def test_show_draws_4_gib_within_1_gib(larger: Path, tmp_path: Path) -> None:
    picture = tmp_path / "J.png"
    printed = run_limited(SHOWN, 1024, str(larger), str(picture))
    table = {line[:17].strip(): line[17:].strip() for line in printed.splitlines()}
    assert table["Frobenius norm"] == f"{2**0.5 * np.linalg.norm(S):.6g}"
    assert table["singular values"] == "7.07107 to 1.414, the largest 3"
    assert table["effective rank"].startswith(f"{35 / 25:.4g} of 4,096")
    peak_mib = int(printed.splitlines()[-1].split()[1])
    print(f"peak of all that is resident: {peak_mib} MiB")
    assert peak_mib < 1024
    assert picture.stat().st_size > 10_000


ASSEMBLED = """
import sys, numpy as np
from pathlib import Path
from jacjobs.planning.planner import Plan
from jacjobs.run.assembler import Assembler
from jacjobs.run.messages import BlockId
plan = Plan.model_validate_json(Path(sys.argv[1]).read_text())
tiling, assembler = plan.tiling, Assembler(sys.argv[2], plan, {"run": "0123", "format": "1"})
for bundle in range(tiling.bundles):
    for position in range(tiling.blocks_in(bundle)):
        b = tiling.block(bundle, position)
        rows, columns = np.arange(b.row_start, b.row_stop), np.arange(b.column_start, b.column_stop)
        values = rows[:, None].astype("f") - 7 * columns[None].astype("f")
        assembler.absorb(BlockId(bundle, position), values[None])
for part in range(tiling.parts):
    assembler.transpose(part)
print(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")).split()[1])
"""


@pytest.mark.timeout(300)
def test_forward_mode_to_rows_is_transposed_within_a_bound(tmp_path: Path) -> None:
    """1 GiB of columns becomes rows in a process that never holds 300 MiB, itself and a block included."""
    rows = ROWS // 2
    shape = JacobianShape(points=1, rows=rows, columns=COLUMNS, dtype="float32", outputs=(), inputs=())
    tiling = tile(shape, 64, by_columns=True)
    assert tiling.spills
    plan = plan_of(tiling, group_records=records_in_a_group(COLUMNS, 4))
    folder = make_run(tmp_path / "run", plan)
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", ASSEMBLED, str(tmp_path / "plan.json"), folder.uri],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak_mib = int(done.stdout) // 1024
    print(f"peak of the assembler's process: {peak_mib} MiB")
    assert peak_mib < 300
    finish(folder, plan)
    from jacjobs.store.reader import open_run

    J = open_run(folder.uri)
    for row in (0, 12_345, rows - 1):
        np.testing.assert_array_equal(J[0, row], np.float32(row) - 7 * np.arange(COLUMNS, dtype=np.float32))
    column = np.arange(rows, dtype=np.float32)
    e = np.zeros(COLUMNS, np.float32)
    e[4000] = 1
    np.testing.assert_array_equal((J @ e)[0], column - 7 * 4000)
