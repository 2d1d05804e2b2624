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

_CHOICE = "plain: the choice, three seconds of timings, fell beside the best"
WHY: dict[str, str] = {
    "MLP, wide": "compiled: matrix products alone take as long as all of JAX's call; "
    "plain: the same products as jacrev's, all at once",
    "MLP, tall": "compiled: 4.0 of 4.4 ms are two matrix products; "
    "JAX's call takes as long (decisions 33, 42)",
    "MLP, square": "plain: the same products as jacrev's, all at once",
    "CNN": _CHOICE,
    "transformer block": _CHOICE,
    "LSTM": "plain: the same products as jacfwd's, all at once",
    "ODE solve": "not known",
    "per sample, parameters": "compiled: the same kernels and products; around them 0.29 ms for "
    "torch.compile's 0.25; most of a call is fresh memory (decisions 41, 42)",
    "per sample, inputs of a CNN": _CHOICE,
    "Hessian": "plain: the same products in the same chunks",
}
"""Of the functions on which jacjobs is slower than somebody. A loss without a reason is no result."""


COMPUTING, WRITING = "Hessian of a loss, computing dominates", "tangent features, writing dominates"
WHY_SLOWER_THAN_SCRIPT = {
    WRITING: "5 to 6 s pass before the first block, while four processes import torch and Ray on two cores",
}
WHY_FAR_FROM_LIMIT = {
    COMPUTING: "start and tuning take 15 s; the rest is the check, the assembler and Ray's processes, which "
    "share two cores with the workers",
    WRITING: "the disk takes more than two cores can compute and write: the sum of both is the limit",
}
LIMIT = 1.15
DETECTION, COLOURING, PRODUCTS = "detection", "colouring", "products"
OURS, COMPILED, THEIRS = "jacjobs", "jacjobs, compiled", "asdex"
_TRACING = "again: torch traces anew, 0.6 to 0.9 ms an operator; JAX has kept its trace"
_ORDERS = (
    "four orders in both directions in Python, for a product less; asdex has one order, compiled (Numba)"
)
_PYTHON = "both directions in Python, a step an entry; asdex's code is compiled (Numba)"
_CALLS = "the calls of torch, of the strategy and of NumPy take longer than the work"
_APART = (
    "plain: operator by operator; compiled: products are written whole, then their entries picked; "
    "XLA has one loop over entries where it makes rows"
)
WHY_SLOWER_THAN_ASDEX: dict[tuple[str, str], str] = {
    ("Brusselator, 32 × 32", DETECTION): _TRACING,
    ("heat, 200", DETECTION): _TRACING,
    ("squared differences, 50", DETECTION): _TRACING,
    ("arrow, 2,000", DETECTION): _TRACING,
    ("Brusselator, 32 × 32", COLOURING): _ORDERS,
    ("Brusselator, 128 × 128", COLOURING): _ORDERS,
    ("Brusselator, 512 × 512", COLOURING): "two orders in both directions in Python, a step an entry; "
    "asdex has one order, compiled (Numba)",
    ("heat, 100,000", COLOURING): _PYTHON,
    ("5th differences, 100,000", COLOURING): _PYTHON,
    ("Brusselator, 32 × 32", PRODUCTS): _CALLS,
    ("Brusselator, 128 × 128", PRODUCTS): _APART,
    ("Brusselator, 512 × 512", PRODUCTS): _APART,
    ("heat, 200", PRODUCTS): _CALLS,
    ("heat, 100,000", PRODUCTS): _APART,
    ("5th differences, 100,000", PRODUCTS): "J is the same everywhere: XLA makes it when it compiles",
    ("squared differences, 50", PRODUCTS): _CALLS,
    ("bundle adjustment, 2,400", PRODUCTS): "plain: operator by operator; compiled: not known",
    ("bundle adjustment, 100,000", PRODUCTS): "plain: operator by operator",
}
"""By function and step; of others it is not known."""


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
            *(_spread(plain), _peer(plain), _spread(compiled), _peer(compiled), _spread(everybody)),
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


def sparse(found: dict[str, Any]) -> str:
    """A table a step: milliseconds, and ratios of time to asdex, above 1 where jacjobs is faster."""
    rows = found["rows"]
    means = [
        f"{name} {_mean_of(rows, step, kind)}"
        for name, step, kind in (
            ("detection", DETECTION, OURS),
            ("colouring", COLOURING, OURS),
            ("all products", PRODUCTS, OURS),
            ("all products, compiled", PRODUCTS, COMPILED),
        )
    ]
    tables = [_detections(rows), _colourings(rows), _all_products(rows)]
    return "\n\n".join([*tables, f"In ms. Geometric means: {'; '.join(means)}."])


def _detections(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| function | J | entries | first: jacjobs | asdex | ÷ | again: jacjobs | asdex | ÷ | "
        "why, where slower |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        first, again = row["first_seconds"], row[DETECTION]
        cells = [
            *(row["function"], _shape(row["shape"]), _differing(row["entries"])),
            *_ms(first, OURS, THEIRS),
            f"{first[THEIRS] / first[OURS]:.2f}" if THEIRS in first else "",
            *(*_ms(again["seconds"], OURS, THEIRS), *_ratios(again, OURS)),
            _why_sparse(row, DETECTION),
        ]
        lines.append(_line(cells))
    return "\n".join(lines)


def _colourings(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| function | products: jacjobs | asdex | grouped in: jacjobs | asdex | ÷ | "
        "why, where slower or more |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        groups = row["groups"]
        cells = [
            row["function"],
            *(_directions(groups[who]) if who in groups else "" for who in (OURS, THEIRS)),
            *(*_ms(row[COLOURING]["seconds"], OURS, THEIRS), *_ratios(row[COLOURING], OURS)),
            _why_sparse(row, COLOURING),
        ]
        lines.append(_line(cells))
    return "\n".join(lines)


def _all_products(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| function | jacjobs | compiled | asdex | made in: jacjobs | compiled | asdex | ÷ | compiled ÷ | "
        "why, where slower |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    kinds = (OURS, COMPILED, THEIRS)
    for row in rows:
        made = row[PRODUCTS]
        cells = [
            *(row["function"], *(made["ways"].get(kind, "") for kind in kinds)),
            *(*_ms(made["seconds"], *kinds), *_ratios(made, OURS, COMPILED)),
            _why_sparse(row, PRODUCTS),
        ]
        lines.append(_line(cells))
    return "\n".join(lines)


def _why_sparse(row: dict[str, Any], step: str) -> str:
    """Where asdex takes less time, or fewer products."""
    ratios = row[step]["ratios"]
    if not ratios:
        return str(row["missing"])
    ours, theirs = (sum(row["groups"][who].values()) for who in (OURS, THEIRS))
    lost = min(ratios.values()) < NOISE or (step == COLOURING and theirs < ours)
    return WHY_SLOWER_THAN_ASDEX.get((row["function"], step), "not known") if lost else ""


def _differing(counts: dict[str, int]) -> str:
    """One number, or one each."""
    if len(set(counts.values())) == 1:
        return f"{counts[OURS]:,}"
    return ", ".join(f"{who} {count:,}" for who, count in counts.items())


def _directions(groups: dict[str, int]) -> str:
    return " and ".join(f"{count:,} of {makes}" for makes, count in groups.items())


def _ms(seconds: dict[str, float], *names: str) -> list[str]:
    """Three digits, or all before the point."""
    made = [1e3 * seconds[name] if name in seconds else None for name in names]
    return ["" if ms is None else f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}" for ms in made]


def _ratios(compared: dict[str, Any], *names: str) -> list[str]:
    return [f"{compared['ratios'][name]:.2f}" if name in compared["ratios"] else "" for name in names]


def _mean_of(rows: list[dict[str, Any]], step: str, name: str) -> str:
    ratios = [row[step]["ratios"][name] for row in rows if name in row[step]["ratios"]]
    return f"{statistics.geometric_mean(ratios):.2f}" if ratios else "none"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "compute": compute,
    "end_to_end": end_to_end,
    "limit": limit,
    "memory": memory,
    "scale": scale,
    "sparse": sparse,
    "startup": startup,
}
TITLES = {
    "compute": "Compute: `jacjobs.jacobian` against the best peer at its best chunk",
    "end_to_end": "End to end: a job on a warm local cluster against a script (ratio of times)",
    "limit": "Limit: a job against the larger of its computing and its writing alone (ratio of times)",
    "memory": "Memory: all processes together, as J grows",
    "scale": "Scale",
    "sparse": "Sparse Jacobians: `jacjobs.structure` against asdex",
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
        "run: warmed up, in turns whose order alternates, medians of the ratios within a turn. Computing "
        "that takes less than 0.2 s is timed in as many calls as take that; JAX has a process of its own. "
        "Ratios of computing are medians of several processes, with the least and the most of them.",
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


def _spread(against: dict[str, Any] | None) -> str:
    """With the least and the most of several processes."""
    ratios = against.get("ratios", ()) if against else ()
    return f"{_ratio(against)} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else _ratio(against)


def _peer(against: dict[str, Any] | None) -> str:
    return str(against["peer"]) if against else ""


def _mean(found: list[dict[str, Any] | None]) -> float:
    return math.exp(statistics.fmean(math.log(each["ratio"]) for each in found if each))
