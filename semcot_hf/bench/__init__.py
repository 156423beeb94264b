"""Benchmarks: how fast the methods are, and how they compare."""
