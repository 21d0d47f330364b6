"""Compiled loops: C built once with the system compiler, each beside its naive reference."""
