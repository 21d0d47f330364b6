"""The version, below every storey, so that any may record it."""

__version__ = "0.1.0"
