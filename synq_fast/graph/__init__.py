"""Traced networks: tracing, and how a graph's nodes are read."""

from synq_fast.graph.nodes import attribute, called_module, constants, shape_of
from synq_fast.graph.trace import trace

__all__ = ["attribute", "called_module", "constants", "shape_of", "trace"]
