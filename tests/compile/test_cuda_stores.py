"""Every pack goes to global memory whole: stores are counted in machine code, kernel by kernel.

A pack that the compiler splits shows as stores of single elements beyond those of the tail.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.compile.sass_checks import disassemble, disassembler, global_stores
from tests.compile.test_cuda_compile import ARCHITECTURES, FLAGS, SOURCES, compile_cuda

pytestmark = pytest.mark.compile

# Mangled names of element types, and their bits.
TYPES = {"f": 32, "6__half": 16, "13__nv_bfloat16": 16, "a": 8, "s": 16}
TYPE = "|".join(TYPES)
# Mangled template arguments: packs of four or eight elements, or a flag that comes last.
PACKED = re.compile(r"Li[48]E|(?:coarse|spread|10map)_kernel\w*?Lb1EEEv")


class Rule(NamedTuple):
    """A kernel that stores packs; `name` may capture the type and the number of its elements.

    `singles` is how many stores of one element it may have: those of the tail, and results of one
    value. None: any number, where a loop over elements is unrolled.
    """

    name: str
    singles: int | None
    bits: int | None = None
    count: int | None = None

    def matches(self, name: str) -> tuple[int, int] | None:
        """Returns the bits of an element and the number in a pack."""
        match = re.search(self.name, name)
        if match is None:
            return None
        given = match.groupdict()
        return (
            self.bits or TYPES[given["type"]],
            self.count or int(given["count"]),
        )


ELEMENT, COUNT = rf"(?P<type>{TYPE})", r"Li(?P<count>[48])E"
RULES = (
    # Element by element at both ends of the tensor, one store in all; a gradient beside it, two.
    Rule(rf"17affine_map_kernelI\w*?QuantizeCodesI(?:{TYPE}){ELEMENT}EE{COUNT}", 1),
    Rule(rf"17affine_map_kernelI\w*?ResidualReluGradientI{ELEMENT}EE{COUNT}", 2),
    Rule(rf"17affine_map_kernelI\w*?[IE]{ELEMENT}EE{COUNT}", 1),
    Rule(rf"19channel_sums_kernelI\w*?ResidualReluGradientsI{ELEMENT}EE{COUNT}", 2),
    Rule(rf"19channel_sums_kernelI\w*?[IE]{ELEMENT}EE{COUNT}", 1),
    Rule(rf"18column_sums_kernelI\w*?I{ELEMENT}EE{COUNT}", 0),
    Rule(rf"22column_gradient_kernelI{ELEMENT}{COUNT}", 0),
    Rule(rf"15gradient_kernelI{ELEMENT}{COUNT}", 0),
    Rule(rf"23moments_gradient_kernelI{ELEMENT}{COUNT}", 0),
    Rule(rf"14combine_kernelI{ELEMENT}{COUNT}", 0),
    # Words of a type of the same size; of the gradient, one store for each tensor.
    Rule(rf"10mix_kernelI\w*?7ForwardEj{COUNT}", 1, bits=32),
    Rule(rf"10mix_kernelI\w*?7ForwardEt{COUNT}", 1, bits=16),
    Rule(rf"10mix_kernelI\w*?8BackwardEj{COUNT}", 2, bits=32),
    Rule(rf"10mix_kernelI\w*?8BackwardEt{COUNT}", 2, bits=16),
    # A range.
    Rule(rf"10row_kernelI{ELEMENT}{COUNT}", 2),
    Rule(rf"11norm_kernelI{ELEMENT}{COUNT}", 0),
    Rule(rf"14softmax_kernelI\w+?E{ELEMENT}{COUNT}", 0),
    Rule(rf"23softmax_gradient_kernelI\w+?E{ELEMENT}{COUNT}", 0),
    # A part's sums are stored one by one.
    Rule(rf"20norm_gradient_kernelI{ELEMENT}{COUNT}", None),
    # A row's difficulty.
    Rule(rf"13logits_kernelI(?:{TYPE}){COUNT}", 1, bits=32),
    # A token's inverse length.
    Rule(rf"16normalize_kernelI(?:{TYPE}){COUNT}", 1, bits=32, count=4),
    Rule(rf"14project_kernelI{COUNT}", 0, bits=32),
    Rule(r"10map_kernelILb1E", 0, bits=32, count=4),
    Rule(r"13spread_kernelIfLb[01]ELb1E", 0, bits=32, count=4),
    Rule(r"13spread_kernelI\w+?Lb[01]ELb1E", 0, bits=16, count=8),
    # The tail, and a sum.
    Rule(r"14channel_kernelI\w*?Li4E", 2, bits=32, count=4),
    # Pairs of groups in the fewest stores that their width allows; the other loop stores bytes.
    Rule(r"14streams_kernelI\w*?7PackingELj8", None, bits=8, count=16),
    Rule(r"14streams_kernelI\w*?7PackingELj4", None, bits=8, count=8),
    Rule(r"14streams_kernelI\w*?7PackingELj[26]", None, bits=8, count=4),
    Rule(r"14streams_kernelI\w*?7PackingELj[357]", None, bits=8, count=2),
    Rule(r"14streams_kernelI\w*?9UnpackingELj", None, bits=8, count=16),
    # One loop over packs, one over elements.
    Rule(rf"15low_pass_kernelI(?:{TYPE}){ELEMENT}Li\d+E", None, count=4),
)
# These read packs and store sums.
READERS = re.compile(r"partials_kernel|coarse_kernel|moments_kernel")

SPLIT = """
#include "{memory}"
using namespace synq;
__global__ void split(const float* x, float* y, float by, int64_t packs) {{
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {{
    Pack<float, 4> pack = load_pack<4>(x + 4 * i);
    for (int j = 0; j < 4; ++j) pack.values[j] /= by;
    for (int j = 0; j < 4; ++j) y[i + j * packs] = pack.values[j];
  }}
}}
__global__ void whole(const float* x, float* y, float by, int64_t packs) {{
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {{
    Pack<float, 4> pack = load_pack<4>(x + 4 * i);
    for (int j = 0; j < 4; ++j) pack.values[j] /= by;
    store_pack<4>(y + 4 * i, pack);
  }}
}}
"""


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_packs_are_stored_whole(source: Path, cuda_object) -> None:
    functions = disassemble(disassembler(), cuda_object(source).path)
    assert {function.arch for function in functions} == {f"sm_{arch}" for arch in ARCHITECTURES}
    for arch, name, code in functions:
        assert "STL" not in code and "LDL" not in code, (arch, name)
        found = next(((rule, m) for rule in RULES if (m := rule.matches(name))), None)
        if found is None:
            assert not PACKED.search(name) or READERS.search(name), f"{name} needs a rule"
            continue
        rule, (bits, count) = found
        stores = global_stores(code)
        wide = stores[min(bits * count, 128)]
        assert wide > 0, (arch, name, stores)
        assert rule.singles is None or stores[bits] <= rule.singles, (arch, name, stores)


def test_the_count_can_fail(tmp_path: Path) -> None:
    found = disassembler()
    source, target = tmp_path / "split.cu", tmp_path / "split.cubin"
    memory = Path(__file__).parents[2] / "csrc" / "cuda" / "memory.cuh"
    source.write_text(SPLIT.format(memory=memory))
    compile_cuda(source, "-cubin", "-arch=sm_90", *FLAGS, "-o", str(target))
    stores = {name: global_stores(code) for _, name, code in disassemble(found, target)}
    split = next(count for name, count in stores.items() if "split" in name)
    whole = next(count for name, count in stores.items() if "whole" in name)
    assert split[32] >= 4
    assert whole == {128: whole[128]}
