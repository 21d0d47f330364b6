"""Modules with a cheaper forward."""
