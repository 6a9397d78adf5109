"""What PTX must hold, and must not, for exact kernels that use the full width of memory.

PTX is the place to look: `.rn` there forbids every later stage to contract a product and a sum. In
machine code an exact division is itself a sequence with fused multiply-adds, so their presence says
nothing.
"""

import re
from collections import Counter
from dataclasses import dataclass

INSTRUCTION = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)\s", re.MULTILINE)
ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(")
VECTOR = re.compile(r"(ld|st)\.global(?:\.[a-zA-Z:0-9_]+)*\.v(\d+)\.[a-z](\d+)")
# Contractible, approximate, flushing subnormals to zero, or an atomic sum in no fixed order.
FORBIDDEN = re.compile(
    r"fma\..*f32|mad\.f32|(?:mul|add|sub)\.f32|(?:div|rcp|sqrt)\.(?:full|approx).*|.*\.ftz.*"
    r"|(?:atom|red)\..*f(?:16|32|64).*"
)
RESOURCES = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'"
    r".*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """What ptxas reports about one kernel."""

    name: str
    arch: str
    registers: int
    spilled_bytes: int


def entries(ptx: str) -> dict[str, Counter[str]]:
    """Returns how often each instruction occurs in each kernel."""
    pieces = ENTRY.split(ptx)
    return {
        name: Counter(INSTRUCTION.findall(body))
        for name, body in zip(pieces[1::2], pieces[2::2], strict=True)
    }


def inexact(instructions: Counter[str]) -> list[str]:
    """Returns the instructions that break bit-exactness or determinism."""
    return sorted(name for name in instructions if FORBIDDEN.fullmatch(name))


def widest_access(instructions: Counter[str], kind: str) -> int:
    """Returns the bits of the widest vector load (`ld`) or store (`st`) of global memory."""
    found = (VECTOR.fullmatch(name) for name in instructions)
    return max((int(m[2]) * int(m[3]) for m in found if m and m[1] == kind), default=0)


def wide_accesses(instructions: Counter[str], kind: str) -> int:
    """Returns the number of 128-bit loads (`ld`) or stores (`st`) of global memory."""
    found = ((VECTOR.fullmatch(name), count) for name, count in instructions.items())
    return sum(n for m, n in found if m and m[1] == kind and int(m[2]) * int(m[3]) >= 128)


def divisions(instructions: Counter[str]) -> int:
    """Returns the number of correctly rounded divisions and reciprocals."""
    return instructions["div.rn.f32"] + instructions["rcp.rn.f32"]


def resources(log: str) -> list[Resources]:
    """Reads the output of `ptxas -v`."""
    return [
        Resources(
            match["name"],
            match["arch"],
            int(match["registers"]),
            int(match["stores"]) + int(match["loads"]),
        )
        for match in RESOURCES.finditer(log)
    ]
