"""Tests, benchmarks and tuning within limited time on a GPU: `python -m bench.gpu --out DIR` and its steps."""
