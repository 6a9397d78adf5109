"""The kernels of the patch similarity entropy against the reference."""

import torch

from synq_fast import ops
from tests.similarity_cases import CASES, LARGE, assert_right, evaluate, make_tokens


def main() -> int:
    """Goes through all cases and element types."""
    torch.manual_seed(0)
    cases = CASES | LARGE
    for name, (shape, options) in cases.items():
        halves = () if name in LARGE else (torch.float16, torch.bfloat16)
        for dtype in (torch.float32, *halves):
            tokens = make_tokens(shape).to(dtype)
            result = evaluate(ops.patch_similarity_entropy, tokens, **options)
            assert_right(result, tokens, **options)
    tokens = make_tokens((2, 40, 17))
    tokens[1, 33, 4] = torch.nan
    for value in evaluate(ops.patch_similarity_entropy, tokens):
        assert value.isnan().all()
    return len(cases)
