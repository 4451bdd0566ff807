"""Shells around the pipeline, one per protocol."""
