"""The dataset against plain pyarrow: writing, reading a row, J @ v; and what transposing costs.

    PYTHONPATH=. python benchmarks/dataset.py [--gib 1] [--out benchmarks/results/dataset.md]

Each comparison alternates the two in one run, after a round that does not count, and quotes the median ratio.
Writing ends with fsync on both sides. The data are float32 with random mantissas, which do not compress.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import jacjobs
from jacjobs.planning.geometry import Tiling, records_in_a_group, tile
from jacjobs.planning.planner import Plan
from jacjobs.run.assembler import Assembler, part_format
from jacjobs.run.messages import BlockId
from jacjobs.shape import Compression, JacobianShape, Layout, Rectangle
from jacjobs.store.commit import flush_folder
from jacjobs.store.folder import RunFolder
from jacjobs.store.parquet import PAGE_BYTES
from jacjobs.store.schema import part_schema
from jacjobs.store.writer import PartWriter
from tests.store.datasets import METADATA, finish, make_run, plan_of

MIB = 1 << 20
COLUMNS = 4096
ROUNDS = 5
CORES = len(os.sched_getaffinity(0))
COMPRESSION: dict[Compression, dict[str, Any]] = {
    "none": {"compression": "none"},
    "zstd": {
        "compression": "zstd",
        "compression_level": 1,
        "use_byte_stream_split": ["values.list.element"],
    },
}
"""Of pyarrow, to write what we write."""


def whole_plan(
    rows: int, columns: int, layout: Layout, by_columns: bool, compression: Compression = "none"
) -> Plan:
    """A plan for one matrix, as far as it concerns the store."""
    shape = JacobianShape(points=1, rows=rows, columns=columns, dtype="float32", outputs=(), inputs=())
    tiling = tile(shape, 64, by_columns=by_columns, layout=layout)
    return plan_of(tiling, compression=compression, group_records=records_in_a_group(tiling.length, 4))


def entries(rectangle: Rectangle) -> np.ndarray:
    """Entries of J, shape (rows, columns): different at every place, and known at any."""
    row = np.arange(rectangle.row_start, rectangle.row_stop, dtype=np.float32)[:, None]
    column = np.arange(rectangle.column_start, rectangle.column_stop, dtype=np.float32)[None]
    return row * np.float32(1 / 3) + column * np.float32(1 / 7)


def alternate(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[list[float], list[float]]:
    """Seconds of each, in turns, the order changed every round; the first round does not count."""
    taken: tuple[list[float], list[float]] = ([], [])
    for round_ in range(ROUNDS + 1):
        for which in (0, 1) if round_ % 2 else (1, 0):
            start = time.perf_counter()
            (first, second)[which]()
            if round_:
                taken[which].append(time.perf_counter() - start)
    return taken


def row(what: str, ours: list[float], theirs: list[float], nbytes: int, target: str) -> list[str]:
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    rates = [nbytes / statistics.median(seconds) / 1e6 for seconds in (ours, theirs)]
    return [what, f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{ratio:.2f}", target]


def as_records(matrix: np.ndarray) -> pa.Table:
    """The records of a part of one matrix, as it has them."""
    lines, nothing = np.arange(len(matrix)), np.zeros(len(matrix), np.int64)
    schema = part_schema("rows", matrix.shape[1], None, "float32")
    lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=schema.field("values").type)
    return pa.table([pa.array(nothing), pa.array(lines), pa.array(nothing), lists], schema=schema)


# -- writing -----------------------------------------------------------------------------------------------


def writing(place: Path) -> list[list[str]]:
    """A part of 256 MiB, in blocks of 64 MiB, against `write_table` of the same table, same options."""
    rows = 256 * MIB // (4 * COLUMNS)
    J = np.random.default_rng(0).standard_normal((1, rows, COLUMNS), dtype=np.float32)
    table = []
    for compression in ("none", "zstd"):
        plan = whole_plan(rows, COLUMNS, "rows", False, compression)
        plan = plan.model_copy(
            update={
                "tiling": Tiling(
                    points=1,
                    rows=rows,
                    columns=COLUMNS,
                    part_points=1,
                    part_lines=rows,
                    block_points=1,
                    block_rows=rows // 4,
                    block_columns=COLUMNS,
                )
            }
        )
        folder = make_run(place / f"write-{compression}", plan)

        def ours(thread: int = 0, plan: Plan = plan, folder: RunFolder = folder) -> None:
            part = Rectangle(thread, thread + 1, 0, rows, 0, COLUMNS)
            writer = PartWriter(folder.place, part, part_format(plan, METADATA))
            for i in range(plan.tiling.blocks_in(0)):
                block = plan.tiling.block(0, i)
                writer.add(block.box("rows"), J[:, block.row_start : block.row_stop])
            writer.commit()

        def theirs(plan: Plan = plan, compression: str = compression) -> None:
            path = place / "plain.parquet"
            pq.write_table(
                as_records(J[0]),
                path,
                row_group_size=plan.group_records,
                use_dictionary=False,
                write_statistics=["point", "row", "start"],
                write_page_checksum=True,
                data_page_size=PAGE_BYTES,
                **COMPRESSION[compression],
            )
            with path.open("rb") as file:
                os.fsync(file.fileno())
            flush_folder(path.parent)

        table.append(
            row(f"writing a part, {compression}, one thread", *alternate(ours, theirs), J.nbytes, "≥ 0.90")
        )

        def many(write: Callable[[int], None] = ours) -> None:
            with ThreadPoolExecutor(CORES) as pool:
                list(pool.map(write, range(CORES)))

        one, several = alternate(ours, many)
        scaling = statistics.median(CORES * a / b for a, b in zip(one, several, strict=True))
        rate = CORES * J.nbytes / statistics.median(several) / 1e6
        table.append([f"… {CORES} threads, against one", f"{rate:,.0f}", "", f"{scaling:.2f}", f"→ {CORES}"])
        shutil.rmtree(folder.uri)
    return table


# -- reading -----------------------------------------------------------------------------------------------


def reading(place: Path, gib: float) -> list[list[str]]:
    rows = int(gib * 1024 * MIB) // (4 * COLUMNS)
    plan = whole_plan(rows, COLUMNS, "rows", False)
    folder = make_run(place / "read", plan)
    chance = np.random.default_rng(0)
    assembler = Assembler(folder.uri, plan, METADATA)
    for bundle in range(plan.tiling.bundles):
        for i in range(plan.tiling.blocks_in(bundle)):
            block = plan.tiling.block(bundle, i)
            values = chance.standard_normal((1, block.rows, COLUMNS), dtype=np.float32)
            assembler.absorb(BlockId(bundle, i), values)
    finish(folder, plan)
    nbytes = rows * COLUMNS * 4
    v = chance.standard_normal(COLUMNS, dtype=np.float32)
    paths = [f"{folder.uri}/{name}" for name in folder.part_names()]
    out = np.empty((1, rows, COLUMNS), np.float32)

    def plain() -> None:
        for path in paths:
            pq.read_table(path, columns=["values"])

    def product() -> None:
        jacjobs.open(folder.uri) @ v

    def everything() -> None:
        jacjobs.open(folder.uri).to_numpy(out=out)

    def one_row() -> None:
        jacjobs.open(folder.uri)[0, int(chance.integers(rows))]

    table = [
        row("J @ v, against pyarrow's read_table", *alternate(product, plain), nbytes, "≥ 0.70"),
        row("to_numpy, against the same", *alternate(everything, plain), nbytes, ""),
    ]
    single, whole = alternate(one_row, everything)
    share = statistics.median(a / b for a, b in zip(single, whole, strict=True))
    table.append(
        [f"one row, share of the time of all {gib:g} GiB", "", "", f"{share:.2%}", "< 1%"],
    )
    shutil.rmtree(folder.uri)
    return table


# -- transposing -------------------------------------------------------------------------------------------


def assemble(path: str, layout: Layout, rows: int, columns: int, answer: Any) -> None:
    """What an assembler does with blocks of columns, in a process of its own: seconds, and peak memory."""
    plan = whole_plan(rows, columns, layout, True)
    make_run(Path(path), plan)
    tiling, assembler = plan.tiling, Assembler(path, plan, METADATA)
    seconds = 0.0
    for bundle in range(tiling.bundles):
        for i in range(tiling.blocks_in(bundle)):
            values = entries(tiling.block(bundle, i))
            values = np.ascontiguousarray(values if layout == "rows" else values.T)[None]
            start = time.perf_counter()
            assembler.absorb(BlockId(bundle, i), values)
            seconds += time.perf_counter() - start
            del values
    start = time.perf_counter()
    if tiling.spills:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(assembler.transpose, range(tiling.parts)))
        assembler.sweep(0)
    seconds += time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024
    answer.put((seconds, peak))


def transposing(place: Path, gib: float) -> list[list[str]]:
    columns = 8192
    rows = int(gib * 1024 * MIB) // (4 * columns)
    taken: dict[str, list[tuple[float, int]]] = {"rows": [], "columns": []}
    for round_ in range(3):
        for layout in ("rows", "columns") if round_ % 2 else ("columns", "rows"):
            path = place / layout
            shutil.rmtree(path, ignore_errors=True)
            spawn = multiprocessing.get_context("spawn")
            answer = spawn.Queue()
            process = spawn.Process(target=assemble, args=(str(path), layout, rows, columns, answer))
            process.start()
            taken[layout].append(answer.get(timeout=600))
            process.join()
    plan = whole_plan(rows, columns, "rows", True)
    finish(RunFolder(place / "rows"), plan)
    J = jacjobs.open(place / "rows")
    for i in range(plan.tiling.parts):
        part = plan.tiling.part(i)
        np.testing.assert_array_equal(J[0, part.row_start : part.row_stop], entries(part))
    ratios = [a[0] / b[0] for a, b in zip(taken["rows"], taken["columns"], strict=True)]
    peak = max(peak for _, peak in taken["rows"])
    rate = {k: rows * columns * 4 / statistics.median(s for s, _ in v) / 1e6 for k, v in taken.items()}
    shutil.rmtree(place / "rows")
    shutil.rmtree(place / "columns")
    return [
        [
            f"forward mode, {gib:g} GiB: layout rows, against layout columns, seconds",
            f"{rate['rows']:,.0f}",
            f"{rate['columns']:,.0f}",
            f"{statistics.median(ratios):.2f}",
            "",
        ],
        ["… peak of the assembler's process, MiB", f"{peak:,}", "", "", "≤ 300"],
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--gib", type=float, default=1.0, help="size of the J that is read")
    arguments.add_argument("--transposed-gib", type=float, default=2.0)
    arguments.add_argument("--out", type=Path)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="jacjobs-", dir=".") as folder:
        place = Path(folder)
        table = writing(place) + reading(place, asked.gib) + transposing(place, asked.transposed_gib)
    head = ["", "MB/s", "MB/s of the other", "ratio", "wanted"]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *table)]
    text = "\n".join(lines)
    print(text)
    if asked.out:
        asked.out.write_text(
            f"# The dataset against plain pyarrow\n\n{CORES} cores; `python benchmarks/dataset.py`. "
            "Medians of ratios, in turns, in one run.\n\n" + text + "\n"
        )


if __name__ == "__main__":
    main()
