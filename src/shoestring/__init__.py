"""Shoestring: deep learning on a small budget."""

__version__ = "0.1.0"
