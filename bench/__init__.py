"""Benchmarks. Each module prints a table, and describes the machine."""
