"""Is the automatic choice the best there is? Against a sweep of every strategy over all chunks that fit.

    python benchmarks/choice.py [FUNCTION …]

For each function of benchmarks/functions.py: a sweep (every strategy that works, chunks in powers of two);
the choice by prediction alone, as for a job too short to be tuned; and the choice after tuning for at most
`--seconds`. The winner of the sweep and the two choices are then timed again in turn, five times, and
compared by the median of the ratios of what all of J would take: 1.00 is as fast as the best of the sweep.
One thread, a worker's environment.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys

from jacjobs.run.cluster.actors import ENVIRONMENT

if any(os.environ.get(key) != value for key, value in ENVIRONMENT.items()):
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ENVIRONMENT})

import torch

from benchmarks.functions import FUNCTIONS
from jacjobs.planning.choice import Chooser, Estimate
from jacjobs.planning.options import ClusterOptions, ComputeOptions, OutputOptions
from jacjobs.planning.planner import chooser_for
from jacjobs.problem import Problem
from jacjobs.run.resources import resources_here
from jacjobs.run.survey import survey
from jacjobs.run.tuner import time_one, tune

ROUNDS = 5
MOST_CHUNK_SECONDS = 1.0
"""Chunks that take longer are left out of the sweep; throughput has long stopped growing there."""


def sweep(problem: Problem, chooser: Chooser) -> list[Estimate]:
    found = []
    for name, model in chooser.models.items():
        for chunk in chooser.grid(name):
            timing = time_one(problem, model, chunk)
            if timing is None or timing.chunk_seconds > MOST_CHUNK_SECONDS:
                break
            found.append(chooser.at(name, chunk, timing))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("functions", nargs="*")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| function | best of the sweep | of | predicted choice | ratio | tuned choice | ratio | timings |")
    print("| --- | --- | ---: | --- | ---: | --- | ---: | ---: |")
    ratios: dict[str, list[float]] = {"predicted": [], "tuned": []}
    for function in options.functions or FUNCTIONS:
        problem = FUNCTIONS[function]()
        cluster = ClusterOptions(address="inline")
        output = OutputOptions(path="runs/choice")
        resources = resources_here(cluster, "4GiB", "runs/choice")
        facts = survey(problem, "auto", resources)
        chooser = chooser_for(facts, ComputeOptions(), output, resources)
        predicted = chooser.ranked()[0]
        timings = tune(problem, chooser, options.seconds)
        tuned = chooser_for(facts, ComputeOptions(), output, resources, timings).ranked()[0]
        swept = sweep(problem, chooser)
        best = min(swept, key=lambda estimate: estimate.seconds)
        rounds: dict[str, list[float]] = {"best": [], "predicted": [], "tuned": []}
        choices = {"best": best, "predicted": predicted, "tuned": tuned}
        for number in range(ROUNDS):
            for name in sorted(choices, reverse=bool(number % 2)):
                choice = choices[name]
                timing = time_one(problem, chooser.models[choice.strategy], choice.chunk)
                assert timing is not None
                rounds[name].append(chooser.at(choice.strategy, choice.chunk, timing).seconds)
        ratio = {
            name: statistics.median(a / b for a, b in zip(rounds[name], rounds["best"], strict=True))
            for name in ratios
        }
        for name, value in ratio.items():
            ratios[name].append(value)
        print(
            f"| {function} | {best.strategy}, {best.chunk:,} | {len(swept)} | "
            f"{predicted.strategy}, {predicted.chunk:,} | {ratio['predicted']:.2f} | "
            f"{tuned.strategy}, {tuned.chunk:,} | {ratio['tuned']:.2f} | {len(timings)} |",
            flush=True,
        )
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    print(f"\nMedian ratio: predicted {medians['predicted']:.2f}, tuned {medians['tuned']:.2f}.")


if __name__ == "__main__":
    main()
