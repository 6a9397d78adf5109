"""What the compiled code of a CUDA kernel says about its speed: registers, and its hot loops.

The hot loop is the innermost one that loads most from global memory. Loads in flight are those
that it issues before the first instruction that reads what one of them brings. The product loop is
the innermost one with most products of tensor cores among those that also add. Of a kernel without
a hot loop the way through it counts that loads most, and of such ways the shortest.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

FLAGS = ("-std=c++17", "-O3", "--fmad=false")  # as in CMakeLists.txt

_LINE = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(.*?)\s*;")
_USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
_ACCESS = re.compile(r"^(?:@!?U?P\w+ )?(LDG|STG)((?:\.\w+)*) (.*)")
_BRANCH = re.compile(r"^(?:@!?U?P\w+ )?BRA(?:\.U)? (?:!?U?P\w+, )?0x([0-9a-f]+)$")
_REGISTER = re.compile(r"\bR(\d+)\b")


class MachineCodeError(RuntimeError):
    """The code cannot be compiled or read here."""


@dataclass(frozen=True)
class Loop:
    """One turn of a kernel's hot loop, of one thread.

    Attributes:
        instructions: Of a turn, without the slow paths that it calls.
        loaded: Bytes loaded from global memory.
        stored: Bytes stored to global memory.
        in_flight: Bytes of the loads that wait together.
        products: Instructions for tensor cores.
    """

    instructions: int
    loaded: int
    stored: int
    in_flight: int
    products: int = 0


@dataclass(frozen=True)
class Kernel:
    """A kernel as it was compiled: its mangled name, resources and hot loops.

    Attributes:
        loop: The hot loop.
        product_loop: That with most products.
        way: Through a kernel without a hot loop.
        length: In instructions up to the program's end; slow paths lie behind it.
        stack_bytes: Of a thread, where registers are spilled to.
    """

    name: str
    registers: int
    shared_bytes: int
    loop: Loop | None
    product_loop: Loop | None = None
    way: Loop | None = None
    length: int = 0
    stack_bytes: int = 0


def _instructions(code: str) -> list[tuple[int, str]]:
    return [(int(m[1], 16), m[2]) for m in _LINE.finditer(code)]


def _access_bytes(modifiers: str) -> int:
    found = re.search(r"\.[US]?(8|16|64|128|256)\b", modifiers)
    return int(found[1]) // 8 if found else 4


def _in_flight(body: list[str]) -> int:
    """Returns the most bytes of loads between two first uses of what was loaded."""
    most = waiting = 0
    pending: set[int] = set()
    for text in body:
        access = _ACCESS.match(text)
        operands = text.split(", ", 1)[1] if access and access[1] == "LDG" else text
        if pending & {int(r) for r in _REGISTER.findall(operands)}:
            pending.clear()
            waiting = 0
        if access and access[1] == "LDG":
            size = _access_bytes(access[2])
            first = _REGISTER.match(access[3])
            waiting += size
            if first:
                pending |= set(range(int(first[1]), int(first[1]) + max(size // 4, 1)))
        most = max(most, waiting)
    return most


def _innermost(code: str) -> list[list[str]]:
    """Returns the loops; of nested ones those that hold no other that loads."""
    lines = _instructions(code)
    spans = []
    for address, text in lines:
        branch = _BRANCH.match(text)
        if branch and int(branch[1], 16) <= address:
            spans.append((int(branch[1], 16), address))
    bodies = []
    for begin, end in spans:
        inner = [
            text
            for b, e in spans
            if (b, e) != (begin, end) and begin <= b and e <= end
            for address, text in lines
            if b <= address <= e
        ]
        if not any(_ACCESS.match(text) for text in inner):
            bodies.append([text for address, text in lines if begin <= address <= end])
    return bodies


def _loop(body: list[str]) -> Loop:
    accesses = [m for m in map(_ACCESS.match, body) if m]
    sizes = {
        kind: sum(_access_bytes(m[2]) for m in accesses if m[1] == kind) for kind in ("LDG", "STG")
    }
    products = sum("HMMA." in text for text in body)
    return Loop(len(body), sizes["LDG"], sizes["STG"], _in_flight(body), products)


def hot_loop(code: str) -> Loop | None:
    """Returns the hot loop of a kernel's disassembly; None where no loop loads anything."""
    loops = [loop for loop in map(_loop, _innermost(code)) if loop.loaded]
    return max(loops, key=lambda loop: (loop.loaded, -loop.instructions), default=None)


def product_loop(code: str) -> Loop | None:
    """Returns the product loop of a kernel's disassembly; None where no loop has products."""
    added = (body for body in _innermost(code) if any("FADD" in text for text in body))
    loops = [loop for loop in map(_loop, added) if loop.products]
    return max(loops, key=lambda loop: (loop.products, -loop.instructions), default=None)


def length(code: str) -> int:
    """Returns the instructions of a kernel's disassembly up to its unconditional end."""
    texts = [text for _, text in _instructions(code)]
    return texts.index("EXIT") + 1 if "EXIT" in texts else len(texts)


def way_through(code: str) -> Loop | None:
    """Returns the way through a kernel's disassembly that loads most; None if none loads."""
    lines = _instructions(code)
    places = {address: i for i, (address, _) in enumerate(lines)}
    # From each instruction on: bytes loaded, minus the instructions, the next one's place.
    best: list[tuple[int, int, int] | None] = [None] * (len(lines) + 1)
    for i in reversed(range(len(lines))):
        address, text = lines[i]
        if text == "EXIT":
            best[i] = (0, -1, -1)
            continue
        branch, access = _BRANCH.match(text), _ACCESS.match(text)
        always = text.startswith("RET") or (branch and re.match(r"BRA(\.U)? 0x", text))
        following = [] if always else [i + 1]
        if branch and int(branch[1], 16) > address:
            following.append(places[int(branch[1], 16)])
        loaded = _access_bytes(access[2]) if access and access[1] == "LDG" else 0
        ways = [(way[0] + loaded, way[1] - 1, j) for j in following if (way := best[j])]
        best[i] = max(ways, default=None)
    body, i = [], 0
    while i >= 0 and (way := best[i]):
        body.append(lines[i][1])
        i = way[2]
    found = _loop(body)
    return found if found.loaded else None


def _tool(name: str, *folders: Path) -> str:
    beside = (shutil.which(name, path=str(folder)) for folder in folders)
    found = shutil.which(name) or next((path for path in beside if path), None)
    if found is None:
        raise MachineCodeError(f"{name} was not found: put the CUDA toolkit's bin folder on PATH")
    return found


def _output(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise MachineCodeError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def disassembler_folders(nvcc: Path | None) -> list[Path]:
    """Where cuobjdump may be if it is not on PATH: beside nvcc, and Triton brings one along."""
    folders = [nvcc.parent] if nvcc is not None else []
    triton = find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return folders


def compile_kernels(source: Path, arch: str, folder: Path) -> list[Kernel]:
    """Compiles one CUDA source for one architecture ("90") and reads its kernels.

    Raises:
        MachineCodeError: A tool is missing or fails.
    """
    nvcc = _tool("nvcc", Path("/usr/local/cuda/bin"))
    disassembler = disassembler_of(Path(nvcc))
    cubin = folder / f"{source.stem}.cubin"
    _output(nvcc, "-cubin", f"-arch=sm_{arch}", *FLAGS, "-o", cubin, source)
    return read_kernels(cubin, disassembler)


def disassembler_of(nvcc: Path | None = None) -> str:
    """Returns the path of cuobjdump.

    Raises:
        MachineCodeError: There is none.
    """
    return _tool("cuobjdump", *disassembler_folders(nvcc))


def read_kernels(cubin: Path, disassembler: str) -> list[Kernel]:
    """Reads the kernels of a compiled object for one architecture.

    Raises:
        MachineCodeError: The disassembler fails.
    """
    usage = {
        m[1]: (int(m[2]), int(m[3]), int(m[4]))
        for m in _USAGE.finditer(_output(disassembler, "-res-usage", cubin))
    }
    kernels = []
    for function in _output(disassembler, "-sass", cubin).split("Function : ")[1:]:
        name = function.split()[0]
        loop = hot_loop(function)
        way = None if loop else way_through(function)
        registers, stack, shared = usage[name]
        loops = loop, product_loop(function), way
        kernels.append(Kernel(name, registers, shared, *loops, length(function), stack))
    return kernels
