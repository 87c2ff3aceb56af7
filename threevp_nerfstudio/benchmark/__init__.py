"""Measuring: what `examples/benchmark.py` and `examples/ablation.py` are made of. Sees every other package."""
