"""The registered ops: schemas, fakes, references and Python autograd, one module per op family."""

from synq_fast.ops._definitions import fake_quantize, ranges
from synq_fast.ops._op import Op

OPS: dict[str, Op] = {**fake_quantize.OPS, **ranges.OPS}
