"""Derivative products and how they are batched. Knows torch; knows no plan, no Ray and no Parquet."""
