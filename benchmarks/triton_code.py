"""What Triton compiles for a GPU that need not be here, as its launchers ask for it.

Launchers run on CPU tensors while a stand-in for the driver names the GPU; nothing is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .machine_code import Kernel, disassembler_of, read_kernels


class Driver(NamedTuple):
    """The part of a Triton driver that compiling needs."""

    capability: int

    def get_current_device(self) -> int:
        """Returns what kernels are kept by: one for each GPU."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Returns the stream that nothing runs on."""
        return 0

    def get_current_target(self) -> Any:
        """Returns the GPU in Triton's words."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@dataclass(frozen=True)
class Launched:
    """A launch that a call asked for: the kernel's name, programs, threads of one, its code."""

    name: str
    programs: int
    threads: int
    kernel: Kernel


@contextmanager
def _compiling(capability: int, launched: Callable[[str, int, Any], None]) -> Iterator[None]:
    import triton

    jit, driver = triton.runtime.jit.JITFunction, triton.runtime.driver
    run, active = jit.run, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        launched(self.fn.__name__, grid[0], kernel)
        return kernel

    jit.run, driver._active = compile_only, Driver(capability)
    try:
        yield
    finally:
        jit.run, driver._active = run, active


def launches_of(call: Callable[[], object], capability: int, folder: Path) -> list[Launched]:
    """Returns the launches of a call, in their order, compiled for one architecture (90).

    Raises:
        MachineCodeError: A tool is missing or fails.
    """
    disassembler, found = disassembler_of(), []

    def launched(name: str, programs: int, compiled: Any) -> None:
        cubin = folder / f"{name}_{len(found)}.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        (kernel,) = read_kernels(cubin, disassembler)
        # Triton asks for shared memory at the launch.
        shared = kernel.shared_bytes + compiled.metadata.shared
        kernel = replace(kernel, name=name, shared_bytes=shared)
        found.append(Launched(name, programs, compiled.metadata.num_warps * 32, kernel))

    with _compiling(capability, launched):
        call()
    return found
