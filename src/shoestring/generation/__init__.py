"""Decode loop, sampling and the KV caches."""
