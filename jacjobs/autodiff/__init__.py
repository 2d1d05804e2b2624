"""Derivative products and how they are batched. Knows torch; knows no plan, no Ray and no Parquet.

Whoever computes imports this package first, and finds the CPU's kernels resolved.
"""

from jacjobs.autodiff.kernels import resolve_kernels

resolve_kernels()
