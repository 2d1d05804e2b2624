"""The results as tables: benchmarks/results/bench.md, and the part of the README between two marks."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
JSON, PAGE, README = RESULTS / "bench.json", RESULTS / "bench.md", ROOT / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
NOISE = 0.97
"""What is not slower than this is no loss."""

WHY: dict[str, str] = {
    "MLP, wide": "compiled: XLA reads W a little faster for W @ x",
    "MLP, tall": "compiled: float32 products by oneDNN and by XLA are equally fast",
    "MLP, square": "plain: the same products as jacrev's, all at once",
    "transformer block": "compiled, float64: the choice fell on a chunk of all of J, which takes longer than "
    "when it was timed; why is not known",
    "LSTM": "plain: the same products as jacfwd's, all at once",
    "ODE solve": "compiled: 0.6 ms of a call of 5 are around the code, which is as fast",
    "per sample, parameters": "compiled: 6.3 ms against 4.8 for 109 MB; not looked into yet",
    "Hessian": "plain: the choice, two seconds of timings, fell beside the best",
}
"""Of the functions on which jacjobs is slower than somebody. A loss without a reason is no result."""


COMPUTING, WRITING = "Hessian of a loss, computing dominates", "tangent features, writing dominates"
WHY_SLOWER_THAN_SCRIPT = {
    WRITING: "5 to 6 s pass before the first block, while four processes import torch and Ray on two cores",
}
WHY_FAR_FROM_LIMIT = {
    COMPUTING: "start 9 to 14 s; of the other 20 s, the check, the assembler and Ray's processes explain 5; "
    "the rest is not known",
    WRITING: "the disk takes more than two cores can compute and write: the sum of both is the limit",
}
LIMIT = 1.15


def compute(found: dict[str, Any]) -> str:
    """Ratios of throughput, above 1 where jacjobs is faster."""
    lines = [
        "| function | dtype | J | jacjobs | ÷ best of torch | best of torch | compiled ÷ best compiled | "
        "best compiled | best ÷ best of all | why, where slower |",
        "| --- | --- | --- | --- | ---: | --- | ---: | --- | ---: | --- |",
    ]
    for row in found["rows"]:
        plain, compiled, everybody = row["plain"], row.get("compiled"), row.get("all")
        lost = min(r["ratio"] for r in (plain, compiled, everybody) if r) < NOISE
        cells = [
            *(row["function"], row["dtype"], _shape(row["shape"]), _choices(row)),
            *(_ratio(plain), _peer(plain), _ratio(compiled), _peer(compiled), _ratio(everybody)),
            why(row["function"]) if lost else "",
        ]
        lines.append(_line(cells))
    means = [f"÷ torch {_mean([r['plain'] for r in found['rows']]):.2f}"]
    if all("all" in row for row in found["rows"]):
        means.append(f"compiled ÷ compiled {_mean([r['compiled'] for r in found['rows']]):.2f}")
        means.append(f"best ÷ best {_mean([r['all'] for r in found['rows']]):.2f}")
    return "\n".join([*lines, "", f"Geometric means: {'; '.join(means)}."])


def why(function: str) -> str:
    return WHY[function]


def end_to_end(found: dict[str, Any]) -> str:
    """Ratios of time, below 1 where jacjobs is faster."""
    lines = [
        "| job | J, GiB | jacjobs' choice | script's chunk | script, s | jacjobs, s | ÷ script | "
        "why, where slower |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in found["rows"]:
        seconds = row["seconds"]
        cells = [
            *_job(row),
            *(f"{row['script_chunk']:,}", f"{seconds['script']:.1f}", f"{seconds['jacjobs']:.1f}"),
            f"{row['ratio']:.2f}",
            WHY_SLOWER_THAN_SCRIPT[row["job"]] if row["ratio"] > 1 / NOISE else "",
        ]
        lines.append(_line(cells))
    return "\n".join(lines)


def limit(found: dict[str, Any]) -> str:
    """Ratios of time: 1 is what there is to reach."""
    lines = [
        "| job | J, GiB | choice | computing alone, s | writing alone, s | the job, s | ÷ the larger | "
        "why, where far from it |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in found["rows"]:
        alone = row["alone_seconds"]
        cells = [
            *_job(row),
            *(f"{alone['compute']:.1f}", f"{alone['write']:.1f}"),
            *(f"{row['seconds']:.1f}", f"{row['ratio']:.2f}"),
            WHY_FAR_FROM_LIMIT[row["job"]] if row["ratio"] > LIMIT else "",
        ]
        lines.append(_line(cells))
    return "\n".join(lines)


def memory(found: dict[str, Any]) -> str:
    lines = ["| J, GiB | on disk, GiB | peak of all processes, GiB |", "| ---: | ---: | ---: |"]
    for row in found["rows"]:
        lines.append(f"| {row['gib']:.1f} | {row['stored_gib']:.1f} | {row['peak_bytes'] / 2**30:.2f} |")
    return "\n".join(lines)


def scale(found: dict[str, Any]) -> str:
    costs, *rows = found["rows"]
    sizes = sorted({row["block_seconds"] for row in rows})
    lines = [
        f"Measured: {costs['blocks_per_second']:,.0f} blocks a second through Ray with two workers on this "
        f"machine, {1e6 * costs['coordinator_seconds']:,.0f} µs of the coordinator's process a block, "
        f"{costs['assembler_bytes_per_second'] / 1e6:,.0f} MB/s an assembler's thread. Simulated from that:",
        "",
        "| GPUs | " + " | ".join(f"{size:g} s a block of 64 MiB" for size in sizes) + " |",
        "| ---: |" + " --- |" * len(sizes),
    ]
    for workers in sorted({row["workers"] for row in rows}):
        of = {row["block_seconds"]: row for row in rows if row["workers"] == workers}
        cells = (
            f"{of[size]['efficiency']:.0%}"
            + (f", waits for {of[size]['first_to_break']}" if of[size]["first_to_break"] else "")
            for size in sizes
        )
        lines.append(f"| {workers:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def startup(found: dict[str, Any]) -> str:
    lines = ["| | median s | least | most |", "| --- | ---: | ---: | ---: |"]
    for row in found["rows"]:
        lines.append(f"| {row['what']} | {row['seconds']:.2f} | {row['least']:.2f} | {row['most']:.2f} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "compute": compute,
    "end_to_end": end_to_end,
    "limit": limit,
    "memory": memory,
    "scale": scale,
    "startup": startup,
}
TITLES = {
    "compute": "Compute: `jacjobs.jacobian` against the best peer at its best chunk",
    "end_to_end": "End to end: a job on a warm local cluster against a script (ratio of times)",
    "limit": "Limit: a job against the larger of its computing and its writing alone (ratio of times)",
    "memory": "Memory: all processes together, as J grows",
    "scale": "Scale",
    "startup": "Start-up",
}


# -- files ---------------------------------------------------------------------------------------------------


def read() -> dict[str, Any]:
    return dict(json.loads(JSON.read_text(encoding="utf-8"))) if JSON.exists() else {}


def replace_row(found: dict[str, Any], row: dict[str, Any]) -> None:
    """Of the table `compute`: the one of the same function and dtype."""
    rows = found["compute"]["rows"]
    same = [i for i, r in enumerate(rows) if (r["function"], r["dtype"]) == (row["function"], row["dtype"])]
    rows[same[0]] = row


def write_json(found: dict[str, Any]) -> None:
    JSON.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def write_tables(found: dict[str, Any]) -> None:
    PAGE.write_text(page(found), encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8"), found), encoding="utf-8")


def page(found: dict[str, Any]) -> str:
    lines = [
        "# jacjobs against what people use instead",
        "",
        "Written by `python -m benchmarks.speed`, with `bench.json` beside it. Each comparison is of one "
        "run: warmed up, in turns whose order alternates, medians of the ratios within a turn.",
    ]
    for name, table in TABLES.items():
        if name in found:
            lines += ["", f"## {TITLES[name]}", "", _of(found[name]["of"]), "", table(found[name])]
    return "\n".join(lines) + "\n"


def with_table(readme: str, found: dict[str, Any]) -> str:
    """The README with what there is between its marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{summary(found)}\n{END}{after}"


def summary(found: dict[str, Any]) -> str:
    """One line a function: the best of jacjobs against the best of all peers."""
    if "compute" not in found:
        return ""
    lines = [
        "| function | J | jacjobs | ÷ best of torch, plain | ÷ best of all, compiled or not | who that is |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for row in found["compute"]["rows"]:
        everybody = row["all"]
        note = f"; {why(row['function'])}" if min(everybody["ratio"], row["plain"]["ratio"]) < NOISE else ""
        lines.append(
            f"| {row['function']}, {row['dtype']} | {_shape(row['shape'])} | {_choices(row)} | "
            f"{_ratio(row['plain'])} | {_ratio(everybody)} | {everybody['peer']}{note} |"
        )
    return "\n".join([*lines, "", _of(found["compute"]["of"])])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _job(row: dict[str, Any]) -> list[str]:
    """Its name, how large its J is, and what was chosen for it."""
    return [row["job"], f"{row['gib']:.1f}", f"{row['strategy']}, {row['chunk']:,}"]


def _of(of: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in of["versions"].items())
    return f"{of['date']}, {of['machine']}; {versions}; {of['minutes']} minutes."


def _shape(shape: list[int]) -> str:
    points, rows, columns = shape
    return f"{rows:,} × {columns:,}" if points == 1 else f"{points:,} × {rows:,} × {columns:,}"


def _choices(row: dict[str, Any]) -> str:
    compiled = row.get("choice_compiled")
    same = compiled in (None, row["choice"])
    return row["choice"] if same else f"{row['choice']}; {compiled}"


def _ratio(against: dict[str, Any] | None) -> str:
    return f"{against['ratio']:.2f}" if against else ""


def _peer(against: dict[str, Any] | None) -> str:
    return str(against["peer"]) if against else ""


def _mean(found: list[dict[str, Any] | None]) -> float:
    return math.exp(statistics.fmean(math.log(each["ratio"]) for each in found if each))
