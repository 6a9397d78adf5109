"""From a teacher and a recipe to a quantized model, or to its images."""

from synq_fast.engine.calls import quantize, synthesize

__all__ = ["quantize", "synthesize"]
