"""What this installation can do: versions, backends, and how to get what is missing."""

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from synq_fast import reference
from synq_fast.errors import ArgumentError
from synq_fast.ops import _backend, _native
from synq_fast.runtime.allocator import can_keep_freed_memory
from synq_fast.runtime.extras import EXTRAS, missing_modules
from synq_fast.runtime.threads import usable_cores

PACKAGES = ("torchvision", "triton", "numpy", "safetensors")


@dataclass(frozen=True)
class Info:
    """A report on the installation.

    Attributes:
        versions: Version of synq-fast, Python and each package; None for one not installed.
        system: Operating system and processor, threads, what the engine does with freed memory,
            and whether bfloat16 is computed in hardware.
        device: The CUDA device's name, or None.
        build: Compiler, torch and CUDA that the extension was built with; empty if it was not.
        cpu_isa: Instruction set that the CPU kernels use, or None without native kernels.
        supported_cpu_isas: Instruction sets built and present on this processor, slowest first.
        choice: The backend choice in force.
        backends: Each backend with None, or the reason why it cannot run.
        extras: Each extra with None, or what it would give and how to get it.
        kernels: The ops with kernels on every backend.
    """

    versions: dict[str, str | None]
    system: dict[str, str]
    device: str | None
    build: dict[str, str]
    cpu_isa: str | None
    supported_cpu_isas: tuple[str, ...]
    choice: str
    backends: dict[str, str | None]
    extras: dict[str, str | None]
    kernels: tuple[str, ...]


def report() -> Info:
    """Collects the report; needs no GPU and no compiler.

    Raises:
        ArgumentError: SYNQ_FAST_CPU_ISA names an instruction set that is not supported.
    """
    extension = _native.EXTENSION
    build: dict[str, str] = {}
    try:
        isa = None if extension is None else extension.cpu_isa()
    except ValueError as error:
        raise ArgumentError(str(error)) from error
    if extension is not None:
        build = {"compiler": extension.compiler, "torch": extension.torch_version}
        if extension.cuda_version is not None:
            build |= {
                "CUDA": extension.cuda_version,
                "CUDA architectures": extension.cuda_architectures,
            }
    return Info(
        versions={
            "synq-fast": _version("synq-fast"),
            "Python": platform.python_version(),
            "torch": torch.__version__,  # also says for what it was built
            **{name: _version(name) for name in PACKAGES},
        },
        system={
            "platform": f"{platform.system()} {platform.machine()}",
            "threads": f"{torch.get_num_threads()} of {usable_cores()} usable cores",
            "freed memory": _FREED[can_keep_freed_memory()],
            "bfloat16": "in hardware" if _has_bfloat16() else "emulated: bf16 is slow here",
        },
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        build=build,
        cpu_isa=isa,
        supported_cpu_isas=() if extension is None else tuple(extension.supported_cpu_isas()),
        choice=_backend.current_backend(),
        backends=_backend.available_backends(),
        extras={name: _remedy(name) for name in EXTRAS},
        kernels=tuple(sorted(name for name in reference.__all__ if name != "read_range")),
    )


_FREED = {
    True: "kept by the engine (blocks up to 1 GiB)",
    False: "returned at once: keeping it needs Linux with glibc",
}


def _has_bfloat16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    names = {"avx512_bf16", "amx_bf16", "bf16"}
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not names.isdisjoint(flags)


def _remedy(extra: str) -> str | None:
    missing = missing_modules(extra)
    if not missing:
        return None
    return f'{EXTRAS[extra].gives}; lacks {", ".join(missing)}: pip install "synq-fast[{extra}]"'


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def render(info: Info) -> str:
    """Returns the report as plain text, with a remedy beside everything that is missing."""
    lines = ["Versions"]
    lines += _table({name: version or "not installed" for name, version in info.versions.items()})
    lines += ["", "Machine"]
    lines += _table(info.system | {"CUDA device": info.device or "none"})
    lines += ["", "Native build"]
    if info.build:
        isas = ", ".join(
            f"{isa} (in use)" if isa == info.cpu_isa else isa for isa in info.supported_cpu_isas
        )
        lines += _table(info.build | {"CPU instruction sets": isas})
    else:
        lines.append("  none: ops run on the reference or on Triton")
    lines += ["", f"Backends (choice: {info.choice})"]
    lines += _table({name: reason or "available" for name, reason in info.backends.items()})
    lines += ["", "Extras"]
    lines += _table(
        {name: lacks or f"installed: {EXTRAS[name].gives}" for name, lacks in info.extras.items()}
    )
    lines += [
        "",
        "Ops with kernels on all of the backends",
        *(f"  {name}" for name in info.kernels),
    ]
    return "\n".join(lines)


def _table(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [f"  {name:<{width}}  {value}" for name, value in rows.items()]
