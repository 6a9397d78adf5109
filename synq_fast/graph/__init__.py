"""Traced networks: tracing, and how a graph's nodes are read."""

from synq_fast.graph.trace import called_module, shape_of, trace

__all__ = ["called_module", "shape_of", "trace"]
