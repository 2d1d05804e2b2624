"""All that only a GPU can show: `python -m benchmarks.gpu [--only agree …] [--compiled NAME …]`.

    tests     tests/gpu
    agree     every strategy on the GPU against torch.func.jacrev in float64 on the host
    memory    what a chunk takes, predicted without a GPU and with one, against what the allocator says
    room      a block whose chunk does not fit the memory
    rates     of matrix products and of copies, by themselves
    copies    the copy of a chunk to the host, beside the products of the next
    compute   jacjobs.jacobian against the best peer, function by function, and the share of the device's
              own rate of matrix products; operator by operator, no compilers
    compiled  the same with compilers, of the functions named by `--compiled`: each takes half a minute

Needs no Ray. Writes gpu.json into the folder `--out` (benchmarks/results, if none is named) as it goes on.
All float32 products are made in float32: TF32 is off, for JAX too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import torch

import jacjobs
from benchmarks import functions
from benchmarks.speed import compute
from benchmarks.speed.compute import Row
from benchmarks.speed.machine import of_this_run
from benchmarks.speed.page import NOISE
from benchmarks.speed.pairs import in_turns
from jacjobs import Problem
from jacjobs.autodiff.block import Pace, compute_block
from jacjobs.autodiff.catalogue import COMPILED, STRATEGIES, strategy_named
from jacjobs.autodiff.estimate import Estimator, allocated, faked
from jacjobs.autodiff.meter import AllocatedPeak, Meter
from jacjobs.autodiff.strategy import corner, seeds_of
from jacjobs.run.unpacking import unpack
from jobs.kernel_residual import problem as kernel_residual
from jobs.kernel_residual import reference

GIB = 1 << 30
ALLOWED = {torch.float32: 1e-4, torch.float64: 1e-10}
"""Largest difference of two results, of the largest entry."""
SOON_COMPILED = ("MLP, tall", "transformer block")
PRODUCTS, CHUNK = 48, 16
"""Of a function, made to be compared with the oracle."""


def on_gpu(problem: Problem) -> Problem:
    """With all that its function captured, as a job's workers get it."""
    return unpack(cloudpickle.dumps(problem), "cuda", from_host=True)


def exact(problem: Problem) -> torch.Tensor:
    """J by torch.func, in float64: (points, rows, columns)."""
    case = compute.Case(problem)
    jac = torch.func.jacrev(case.fn, case.argnums)
    return case.entries((torch.func.vmap(jac, case.in_dims) if case.in_dims is not None else jac)(*case.args))


# -- what is measured ----------------------------------------------------------------------------------------

AGREE: dict[str, Callable[..., Problem]] = {
    "MLP, tall": functions.mlp_tall,
    "CNN": functions.cnn,
    "samples of a CNN": lambda dtype: functions.samples(dtype, count=8),
    "transformer block": functions.transformer,
    "LSTM": functions.lstm,
    "ODE solve": functions.ode,
    "parameters": lambda dtype: functions.parameters(dtype, count=4),
    "Hessian": functions.hessian,
}


def tests() -> Iterator[Row]:
    """Those that need a GPU."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-p", "no:cacheprovider", "-rf", "--tb=short"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    yield {
        "said": "".join(done.stdout.strip().splitlines()[-1:]),
        "log": (done.stdout + done.stderr)[-6000:] if done.returncode else "",
    }


def agree() -> Iterator[Row]:
    for name, make in AGREE.items():
        want = exact(make(torch.float64))
        for dtype in (torch.float32, torch.float64):
            problem = on_gpu(make(dtype))
            for strategy in [*STRATEGIES, *(COMPILED if name in SOON_COMPILED else ())]:
                maker = strategy_named(strategy)
                block = corner(maker, problem, want.shape[0], PRODUCTS)
                row: Row = {"function": name, "dtype": str(dtype), "strategy": strategy}
                try:
                    chunk = CHUNK * (want.shape[0] if strategy in COMPILED else 1)
                    pace = Pace(strategy, chunk)
                    made = torch.from_numpy(compute_block(problem, pace, block))
                except Exception as error:
                    yield {**row, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"}
                    continue
                part = want[:, block.row_start : block.row_stop, block.column_start : block.column_stop]
                off = ((made.double() - part).abs().max() / part.abs().max()).item()
                yield {**row, "off": off, "good": off <= ALLOWED[dtype], "said": pace.retreats}


MEMORY = ("MLP, square", "CNN", "transformer block", "attention", "LSTM", "kernel residual", "Hessian")
CHUNKS = (64, 512)


def memory() -> Iterator[Row]:
    for name in MEMORY:
        on_host = functions.FUNCTIONS[name]()
        there = on_gpu(on_host)
        budget = 16 * GIB
        without, with_it = Estimator(on_host, budget, correct=False), Estimator(there, budget)
        for strategy, maker in STRATEGIES.items():
            if maker.batching == "loop":
                continue
            for chunk in CHUNKS:
                row: Row = {"function": name, "strategy": strategy, "chunk": chunk}
                try:
                    row["without"] = without.model(strategy).peak_bytes(chunk)
                    row["with"] = with_it.model(strategy).peak_bytes(chunk)
                    if row["without"] > budget:
                        continue
                    row["measured"] = allocated(there, maker, 1, chunk)
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
                yield row


def room() -> Iterator[Row]:
    """A block of 2,000 rows at once, where a quarter of them fits."""
    problem = on_gpu(kernel_residual())
    maker, want = STRATEGIES["vjp/vmap"], torch.from_numpy(reference([0]))[0]
    block = corner(maker, problem, 1, 2000)
    with AllocatedPeak(torch.device("cuda")) as whole:
        for made in maker.chunks(problem, block, seeds_of(maker, problem), 2000):
            del made
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_reserved() + whole.nbytes // 4
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        try:
            list(maker.chunks(problem, block, seeds_of(maker, problem), 2000))
            naive = "it fitted"
        except torch.OutOfMemoryError:
            naive = "out of memory"
        pace = Pace("vjp/vmap", 2000)
        made = torch.from_numpy(compute_block(problem, pace, block))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    off = ((made[0] - want[:2000]).abs().max() / want.abs().max()).item()
    yield {
        "needs": whole.nbytes, "allowed": allowed, "naive": naive, "off": off,
        "retreats": pace.retreats, "chunk": pace.chunk, "good": off <= 1e-10 and naive != "it fitted",
    }  # fmt: skip


def copies() -> Iterator[Row]:
    for name, make in {
        "MLP, 4,096": lambda: mlp_of(4096),
        "transformer block": functions.transformer,
    }.items():
        problem = on_gpu(make())
        maker = STRATEGIES["vjp/vmap"]
        for chunk in (128, 512):
            yield {"function": name, "chunk": chunk, **_copied(problem, maker, chunk)}


def _copied(problem: Problem, maker: Any, chunk: int) -> Row:
    block = corner(maker, problem, 1, problem.shape.rows)
    shape = (1, problem.shape.rows, problem.shape.columns)
    host = torch.empty(shape, pin_memory=True)
    device = torch.empty(shape, device="cuda")

    def products() -> None:
        for made in maker.chunks(problem, block, seeds_of(maker, problem), chunk):
            del made

    def one_after_the_other() -> None:
        for made in maker.chunks(problem, block, seeds_of(maker, problem), chunk):
            host[0, made.products].copy_(made.leaves[0][0], non_blocking=True)
            del made

    works = {
        "products": products,
        "copy": lambda: host.copy_(device, non_blocking=True),
        "one after the other": one_after_the_other,
        "at the same time": lambda: compute_block(problem, Pace(maker.name, chunk), block),
    }
    seconds = in_turns(works, 6, 0.05)
    return {"bytes": host.nbytes} | {who: statistics.median(taken) for who, taken in seconds.items()}


def mlp_of(width: int, dtype: torch.dtype = torch.float32) -> Problem:
    """Square, three layers."""
    return Problem(
        functions._mlp(width, width, width, width, dtype=dtype), (functions.randn(width, dtype=dtype),)
    )


def large_mlp(dtype: torch.dtype) -> Problem:
    return mlp_of(8192, dtype)


LARGE = {"MLP, square, 8,192": compute.Speed(large_mlp, "mlp_large", dtypes=compute.BOTH)}


def rates() -> Iterator[Row]:
    """Of matrix products, in operations a second; and of copies, in bytes a second, read and written."""

    def seconds(work: Callable[[], Any]) -> float:
        return statistics.median(in_turns({"it": work}, 5, 0.1)["it"])

    size = 8192
    for dtype in ALLOWED:
        a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
        yield {"what": str(dtype), "rate": 2 * size**3 / seconds(partial(torch.mm, a, b))}
    device = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    other, host = torch.empty_like(device), torch.empty(GIB, dtype=torch.uint8, pin_memory=True)
    yield {"what": "device", "rate": 2 * GIB / seconds(lambda: other.copy_(device))}
    yield {"what": "to the host", "rate": GIB / seconds(lambda: host.copy_(device, non_blocking=True))}


SPEEDS = {**compute.FUNCTIONS, **LARGE}


def measure_compute(names: list[str]) -> Iterator[Row]:
    for name in names or SPEEDS:
        for dtype in SPEEDS[name].dtypes:
            yield _measured(name, dtype, quick=True)


def measure_compiled(names: list[str]) -> Iterator[Row]:
    for name in names:
        yield _measured(name, SPEEDS[name].dtypes[0], quick=False)


def _measured(name: str, dtype: torch.dtype, *, quick: bool) -> Row:
    speed = SPEEDS[name]
    problem = on_gpu(speed.make(dtype=dtype, **speed.sizes))
    began = time.perf_counter()
    try:
        if quick:
            row = compute.measured(name, problem, dtype, {}, quick=True)
        else:
            with compute.twins_of(speed, dtype) as jax:
                row = compute.measured(name, problem, dtype, jax.works, quick=False)
    except Exception as error:
        row = {"function": name, "dtype": str(dtype), "error": f"{type(error).__name__}: {error}"[:400]}
    else:
        row["flops"] = flops_of(problem, row["choice"])
    return {**row, "took": time.perf_counter() - began}


def flops_of(problem: Problem, choice: str) -> int:
    """Floating-point operations of all of J, as torch counts them: by the plain strategy that was chosen."""
    strategy, _, chunk = choice.partition(", ")
    maker = strategy_named(strategy)
    shape = problem.shape
    block = corner(maker, problem, shape.points, shape.rows if maker.makes == "rows" else shape.columns)
    with faked(problem) as fake, Meter(fakes=True) as meter:
        for made in maker.chunks(fake, block, seeds_of(maker, fake), int(chunk.replace(",", ""))):
            del made
    return meter.work.flops


def warm(name: str) -> None:
    """Compile what a function's row will: torch keeps it on disk."""
    speed = SPEEDS[name]
    problem = on_gpu(speed.make(dtype=speed.dtypes[0], **speed.sizes))
    case = compute.Case(problem)
    for work in compute.compiled_peers_of(case).values():
        work()
    jacjobs.jacobian(case.fn, case.argnums, in_dims=case.in_dims, compile=True)(*case.args)


# -- running it ----------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    "tests": tests,
    "agree": agree,
    "memory": memory,
    "room": room,
    "rates": rates,
    "copies": copies,
}
COMPARED = ("compute", "compiled")
"""With peers, function by function."""
TIMED = ("rates", "copies", *COMPARED)
"""What has the device to itself."""
COMPILING_SECONDS = 80.0
"""What compiles ahead is waited for no longer."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, *COMPARED], default=[*SECTIONS, *COMPARED])
    parser.add_argument("--functions", nargs="+", default=[])
    parser.add_argument("--compiled", nargs="+", default=[])
    parser.add_argument("--warm")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    if options.warm:
        warm(options.warm)
        return
    began = time.perf_counter()
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2", "OMP_NUM_THREADS": "1"}
    ahead = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", "--warm", name], env=environment)
        for name in options.compiled
    ]
    results = options.out / "gpu.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    sections = {
        **SECTIONS,
        "compute": lambda: measure_compute(options.functions),
        "compiled": lambda: measure_compiled(options.compiled),
    }
    for name in options.only:
        if name == "compiled" and not options.compiled:
            continue
        if name in TIMED:
            for process in ahead:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(1.0, COMPILING_SECONDS - (time.perf_counter() - began)))
                process.kill()
        start = time.perf_counter()
        rows: list[Row] = []
        for row in sections[name]():
            rows.append(row)
            print(name, json.dumps(row), flush=True)
            of = of_this_run(time.perf_counter() - start) | {"device": torch.cuda.get_device_name()}
            found[name] = {"of": of, "rows": rows}
            results.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {len(rows)} rows, {time.perf_counter() - start:.0f} s", flush=True)
    (options.out / "gpu.md").write_text(page(found))
    print(page(found))


# -- the page ------------------------------------------------------------------------------------------------

WHY: dict[tuple[str, str], str] = {
    (
        "kernel residual",
        "float64",
    ): "calls of Python within torch, of which its older vmap has fewer; none are "
    "made since (decision 40), not measured",
    ("Hessian", "float64"): "the choice: before races began with larger chunks; not measured by itself since",
    ("MLP, wide", "float32"): "0.04 ms of products; a replay copies the 32 MB of weights first (0.03), and "
    "what is around it takes 0.2",
}
"""Of rows that are lost."""


def page(found: dict[str, Any]) -> str:
    """All that was found, as Markdown."""
    some = [section["of"] for section in found.values()]
    devices = ", ".join(sorted({of["device"] for of in some}))
    versions = sorted({f"torch {of['versions']['torch']}, JAX {of['versions']['jax']}" for of in some})
    lines = [
        "# On a GPU",
        "",
        f"Written by `python -m benchmarks.gpu`, with `gpu.json` beside it: {devices}; "
        f"{'; '.join(versions)}; {', '.join(sorted({of['date'] for of in some}))}. TF32 is off. "
        "Decisions: docs/decisions/0034, 0039.",
        "",
        "| check | seen |",
        "| --- | --- |",
    ]
    rows = {name: section["rows"] for name, section in found.items()}
    for name, words in WORDS.items():
        if name in rows:
            lines.append(f"| {name} | {words(rows[name])} |")
    if "compute" in rows:
        lines += ["", *_compute_table(rows["compute"], rows.get("rates", []))]
    if "compiled" in rows:
        lines += ["", *_compiled_table(rows["compiled"])]
    return "\n".join(lines) + "\n"


def _of_tests(rows: list[Row]) -> str:
    return "; ".join(row["said"] for row in rows)


def _of_agree(rows: list[Row]) -> str:
    good = sum(row.get("good", False) for row in rows)
    worst = {
        d: max(r.get("off", 0.0) for r in rows if r["dtype"].endswith(d)) for d in ("float32", "float64")
    }
    functions_seen = {row["function"] for row in rows}
    return (
        f"{good} of {len(rows)} of strategy, function ({len(functions_seen)}) and dtype agree with "
        f"torch.func in float64 on the host; largest difference, of the largest entry: "
        f"{worst['float32']:.0e} in float32, {worst['float64']:.0e} in float64"
    )


def _of_memory(rows: list[Row]) -> str:
    seen = [row for row in rows if "measured" in row]
    said = []
    for name in dict.fromkeys(row["function"] for row in seen):
        own = [row for row in seen if row["function"] == name]
        here, away = ([row["measured"] / row[key] for row in own] for key in ("with", "without"))
        said.append(f"{name} {min(here):.2f}–{max(here):.2f} ({min(away):.2f}–{max(away):.2f})")
    return "measured ÷ predicted on the device (÷ predicted without one): " + "; ".join(said)


def _of_room(rows: list[Row]) -> str:
    (row,) = rows
    return (
        f"a chunk of 2,000 that needs {row['needs'] / GIB:.1f} GiB, where {row['allowed'] / GIB:.1f} are "
        f"allowed: by itself {row['naive']}; as a block {len(row['retreats'])} halvings, to {row['chunk']}, "
        f"and right to {row['off']:.0e}"
    )


def _of_rates(rows: list[Row]) -> str:
    rate = {row["what"]: row["rate"] for row in rows}
    return (
        f"matrix products of 8,192: {rate['torch.float32'] / 1e12:.0f} TFLOP/s in float32, "
        f"{rate['torch.float64'] / 1e12:.0f} in float64; memory {rate['device'] / 1e12:.2f} TB/s, "
        f"to the host {rate['to the host'] / 1e9:.0f} GB/s"
    )


def _of_copies(rows: list[Row]) -> str:
    return "; ".join(
        f"{row['function']}, chunk {row['chunk']}: products {1e3 * row['products']:.1f} ms, copy "
        f"{1e3 * row['copy']:.1f}, one after the other {1e3 * row['one after the other']:.1f}, at the same "
        f"time {1e3 * row['at the same time']:.1f}"
        for row in rows
    )


WORDS: dict[str, Callable[[list[Row]], str]] = {
    "tests": _of_tests,
    "agree": _of_agree,
    "memory": _of_memory,
    "room": _of_room,
    "rates": _of_rates,
    "copies": _of_copies,
}


def _compute_table(rows: list[Row], rates: list[Row]) -> list[str]:
    lines = [
        "`jacjobs.jacobian` against the best of torch: throughput, in turns, medians of ratios; "
        "above 1, it is faster. The share is of the device's own rate of matrix products, in the same dtype.",
        "",
        "| function | dtype | J | choice | jacjobs ÷ torch | best of torch | ms | share | why |",
        "| --- | --- | --- | --- | ---: | --- | ---: | ---: | --- |",
    ]
    rate = {row["what"].removeprefix("torch."): row["rate"] for row in rates}
    for row in rows:
        if "error" in row:
            lines.append(_failed(row, 6))
            continue
        ours, ratio = row["seconds"]["jacjobs"], row["plain"]["ratio"]
        share = f"{row['flops'] / ours / rate[row['dtype']]:.0%}" if row["dtype"] in rate else ""
        lines.append(
            f"| {row['function']} | {row['dtype']} | {_size(row)} | {row['choice']} | {ratio:.2f} "
            f"| {row['plain']['peer']} | {1e3 * ours:.2f} | {share} | {_why(row, ratio)} |"
        )
    ratios = [row["plain"]["ratio"] for row in rows if "error" not in row]
    return [*lines, "", f"Geometric mean: {statistics.geometric_mean(ratios):.2f}."]


def _compiled_table(rows: list[Row]) -> list[str]:
    lines = [
        "With compilers, the best of jacjobs against the best of all, of those that there was time for:",
        "",
        "| function | dtype | J | choice | ms | best ÷ best | best of all | why |",
        "| --- | --- | --- | --- | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        if "error" in row:
            lines.append(_failed(row, 5))
            continue
        ours = min(seconds for who, seconds in row["seconds"].items() if who.startswith("jacjobs"))
        ratio = row["all"]["ratio"]
        lines.append(
            f"| {row['function']} | {row['dtype']} | {_size(row)} | {row['choice_compiled']} "
            f"| {1e3 * ours:.2f} | {ratio:.2f} | {row['all']['peer']} | {_why(row, ratio)} |"
        )
    return lines


def _failed(row: Row, more: int) -> str:
    return f"| {row['function']} | {row['dtype']} | {row['error']} |" + " |" * more


def _size(row: Row) -> str:
    points, m, n = row["shape"]
    return f"{m:,} × {n:,}" + (f", {points} points" if points > 1 else "")


def _why(row: Row, ratio: float) -> str:
    return WHY.get((row["function"], row["dtype"]), "not known") if ratio < NOISE else ""


if __name__ == "__main__":
    main()
