"""Benchmark of sequence parallelism (`make bench-mmsp`): bytes, memory and time of `vlm.parallel` and of its rivals, in one run."""
