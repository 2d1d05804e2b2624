"""All tables: `python -m benchmarks.speed [--quick] [--only compute …] [--functions "MLP, tall" …]`.

Writes benchmarks/results/bench.json, and from it benchmarks/results/bench.md and the README's table.
`--quick` is for a look: smaller sizes, fewer rounds, no compilers; it writes nothing. `--functions` measures
some functions of the table `compute` again, and leaves its other rows as they are.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.speed import compute, end_to_end, limit, memory, page, scale, sparse, startup
from benchmarks.speed.machine import of_this_run

TABLES: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "compute": compute.measure,
    "end_to_end": end_to_end.measure,
    "limit": limit.measure,
    "memory": memory.measure,
    "scale": scale.measure,
    "sparse": sparse.measure,
    "startup": startup.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--functions", nargs="+", choices=compute.FUNCTIONS, default=[])
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    found = page.read()
    if options.functions:
        for row in compute.measure(options.functions, quick=options.quick):
            print(row, flush=True)
            if not options.quick:
                page.replace_row(found, row)
                page.write_json(found)
                page.write_tables(found)
        return
    for name in options.only:
        began = time.perf_counter()
        rows: list[dict[str, Any]] = []
        for row in TABLES[name](quick=options.quick):
            rows.append(row)
            print(row, flush=True)
            found[name] = {"rows": rows, "of": of_this_run(time.perf_counter() - began)}
            if not options.quick:
                page.write_json(found)
        if not options.quick:
            page.write_tables(found)
        print(page.TABLES[name](found[name]), flush=True)


if __name__ == "__main__":
    main()
