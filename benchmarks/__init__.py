"""Benchmarks of pad_kernels: run them from the root of the repository."""
