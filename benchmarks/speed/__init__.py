"""jacjobs against what people use instead, side by side in one run: `python -m benchmarks.speed`."""
