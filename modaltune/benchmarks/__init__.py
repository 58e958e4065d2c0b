"""Benchmarks: ratios against the plain path in the same run, and cost as work grows."""
