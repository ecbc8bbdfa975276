"""Benchmarks: `python -m benchmarks.NAME [--quick] [--seed S] [--out FILE]` prints a table and writes JSON."""
