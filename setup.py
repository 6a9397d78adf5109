"""Drives the CMake build of the native kernels; everything declarative is in pyproject.toml.

The extension must match the torch that it runs with, so it is built against the torch of the
environment that the package is installed into. Under pip's build isolation that torch cannot be
imported, but it can be found: pip runs the build with the target environment's interpreter. A
second torch is never downloaded just to build against it. Where no torch, compiler or CMake is
found the package installs without native kernels; the first import, every run and
`synq-fast info` tell why. SYNQ_FAST_NATIVE=0 says that this is wanted.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "synq_fast"
BUILD_INFO = "_build_info.json"
OLDEST_CXX_STANDARD = "17"
# Ampere and Hopper as machine code, everything newer through the PTX that "90" also embeds.
CUDA_ARCHITECTURES = os.environ.get("SYNQ_FAST_CUDA_ARCHITECTURES", "80-real;90")


class BuildUnavailableError(Exception):
    """The native build cannot run here; the message is the reason shown by `synq-fast info`."""


def find_torch() -> tuple[Path, str, "str | None"]:
    """Return torch's folder, version and CUDA version without importing it."""
    for site in dict.fromkeys([*map(sysconfig.get_path, ("platlib", "purelib")), *sys.path]):
        version_file = Path(site or ".") / "torch" / "version.py"
        if version_file.is_file():
            namespace: dict[str, object] = {}
            exec(version_file.read_text(), namespace)
            cuda = namespace.get("cuda")
            return version_file.parent, str(namespace["__version__"]), str(cuda) if cuda else None
    raise BuildUnavailableError(
        "torch was not installed when the package was built; install torch first, then reinstall "
        "with `pip install --no-build-isolation --force-reinstall --no-deps .`"
    )


def find_cxx_dialect(torch_dir: Path) -> tuple[str, str]:
    """Return the C++ standard and the ABI option that torch's CMake configuration asks of users.

    Headers of one torch do not compile under the standard of another: up to 2.11 they want 17. The
    option, empty for the compiler's own ABI, chooses the old strings that 2.6 was built with.
    """
    config = torch_dir / "share" / "cmake" / "Torch" / "TorchConfig.cmake"
    text = config.read_text() if config.is_file() else ""
    standard = re.search(r"\bCXX_STANDARD\s+(\d+)", text)
    abi = re.search(r"-D_GLIBCXX_USE_CXX11_ABI=\d", text)
    return standard[1] if standard else OLDEST_CXX_STANDARD, abi[0] if abi else ""


def find_tool(name: str) -> str:
    """Return a build tool, the environment's own before the system's."""
    scripts = sysconfig.get_path("scripts")
    path = shutil.which(name, path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))
    if path is None:
        raise BuildUnavailableError(f"{name} was not found; `pip install {name}` and reinstall")
    return path


def check_compiler() -> None:
    """Raise unless CMake will find a C++ compiler."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    if not any(shutil.which(name.split()[0]) for name in names):
        raise BuildUnavailableError(
            f"no C++ compiler was found (looked for {', '.join(names)}); "
            "install one, such as g++, and reinstall"
        )


def find_nvcc(torch_cuda: "str | None") -> tuple["str | None", str]:
    """Return (nvcc, "") or (None, why CUDA kernels are not built)."""
    if os.environ.get("SYNQ_FAST_CUDA", "1") == "0":
        return None, "switched off by SYNQ_FAST_CUDA=0 when the package was built"
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    folders = [f"{home}/bin"] if home else []
    folders += [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(folders))
    if nvcc is None:
        return None, "nvcc was not found; install the CUDA toolkit, put nvcc on PATH and reinstall"
    if torch_cuda is None:
        return None, "torch is a CPU-only build; install a CUDA build of torch and reinstall"
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.", output)
    if found is None or found[1] != torch_cuda.split(".")[0]:
        release = found[1] if found else "an unknown release"
        return None, (
            f"nvcc is CUDA {release} but torch was built for CUDA {torch_cuda}; "
            "install a matching toolkit and reinstall"
        )
    return nvcc, ""


def run(command: list[str], log: Path) -> None:
    """Run one build step and log it; on failure the telling lines become the error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with log.open("a") as stream:
        stream.write(f"$ {' '.join(command)}\n{result.stdout}\n")
    if result.returncode != 0:
        sys.stderr.write(result.stdout)
        raise BuildUnavailableError(
            f"{summarise(result.stdout)} (the whole output: {log}); mend this and reinstall"
        )


def summarise(output: str) -> str:
    """Return what follows the first mention of an error, without CMake's own file names."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = next((i for i, line in enumerate(lines) if re.search(r"\berror\b", line, re.I)), -4)
    text = " ".join(lines[first : first + 4] if first >= 0 else lines[first:])
    return re.sub(r"CMake Error at \S+ \(\w+\): ", "", text)[:500]


def configure_and_build(nvcc: "str | None", torch_dir: Path, torch_version: str) -> Path:
    """Run CMake and Ninja in a folder that is kept: the next build compiles only what changed."""
    tag = f"{sys.implementation.cache_tag}-torch{torch_version}" + ("-cuda" if nvcc else "")
    folder = ROOT / "build" / re.sub(r"[^\w.+-]", "_", tag)
    log = folder / "build.log"
    log.unlink(missing_ok=True)
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    standard, abi_option = find_cxx_dialect(torch_dir)
    options = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "SYNQ_TORCH_DIR": torch_dir,
        "SYNQ_TORCH_VERSION": torch_version,
        "SYNQ_TORCH_CXX_STANDARD": standard,
        "SYNQ_TORCH_ABI_OPTION": abi_option,
        "SYNQ_PYTHON": sys.executable,
        "SYNQ_PYTHON_INCLUDE_DIR": sysconfig.get_path("include"),
        "SYNQ_EXTENSION_SUFFIX": suffix,
        "SYNQ_CUDA": "ON" if nvcc else "OFF",
    }
    if nvcc:
        options |= {
            "CMAKE_CUDA_COMPILER": nvcc,
            "SYNQ_CUDA_ARCHITECTURES": CUDA_ARCHITECTURES,
            # A spill is slow, not wrong: it stops those who can mend it, not a user's install.
            "SYNQ_FORBID_SPILLS": "ON" if os.environ.get("SYNQ_FAST_REQUIRE_NATIVE") else "OFF",
        }
    arguments = [f"-D{name}={value}" for name, value in options.items()]
    try:
        run([cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *arguments], log)
    except BuildUnavailableError:
        # CMake remembers a compiler that failed; the next try may have a better one.
        (folder / "CMakeCache.txt").unlink(missing_ok=True)
        raise
    run([cmake, "--build", str(folder)], log)
    module = folder / f"_C{suffix}"
    if not module.is_file():
        raise BuildUnavailableError(f"the build ended without making {module.name}; see {log}")
    return module


def build_native() -> tuple["Path | None", dict[str, object]]:
    """Build what can be built; return the module, if any, and the record of the build."""
    info: dict[str, object] = {"native": False, "reason": "", "cuda_reason": "", "torch": None}
    try:
        if os.environ.get("SYNQ_FAST_NATIVE") == "0":
            raise BuildUnavailableError(
                "switched off by SYNQ_FAST_NATIVE=0 when the package was built; "
                "unset it and reinstall"
            )
        torch_dir, torch_version, torch_cuda = find_torch()
        info["torch"] = torch_version
        check_compiler()
        nvcc, info["cuda_reason"] = find_nvcc(torch_cuda)
        module = None
        if nvcc is not None:
            try:
                module = configure_and_build(nvcc, torch_dir, torch_version)
            except BuildUnavailableError as error:
                if os.environ.get("SYNQ_FAST_REQUIRE_NATIVE"):
                    raise
                info["cuda_reason"] = f"the CUDA build failed: {error}"
        if module is None:
            module = configure_and_build(None, torch_dir, torch_version)
        info["native"] = True
    except BuildUnavailableError as error:
        if os.environ.get("SYNQ_FAST_REQUIRE_NATIVE"):
            raise SystemExit(
                f"SYNQ_FAST_REQUIRE_NATIVE is set and the native build failed: {error}"
            ) from None
        info["reason"] = str(error)
        print(f"synq-fast: installing without native kernels: {error}", file=sys.stderr)
        return None, info
    return module, info


class BuildNative(build_ext):
    """Builds `synq_fast._C` with CMake and places it where setuptools wants it."""

    def run(self) -> None:
        """Build, then copy the module and the record of the build."""
        module, info = build_native()
        target = PACKAGE if self.inplace else Path(self.build_lib) / "synq_fast"
        target.mkdir(parents=True, exist_ok=True)
        for stale in target.glob("_C.*"):
            stale.unlink()
        if module is not None:
            shutil.copy2(module, target / module.name)
        (target / BUILD_INFO).write_text(json.dumps(info, indent=2) + "\n")

    def get_outputs(self) -> list[str]:
        """Return what a wheel must contain."""
        target = Path(self.build_lib) / "synq_fast"
        return [str(target / BUILD_INFO), *map(str, target.glob("_C.*"))]

    def get_output_mapping(self) -> dict[str, str]:
        """Return nothing: an editable install finds the module beside the sources."""
        return {}


class NativeDistribution(Distribution):
    """Tags the wheel for one platform and one Python, also where the native build is skipped."""

    def has_ext_modules(self) -> bool:
        """Return True."""
        return True


setup(
    distclass=NativeDistribution,
    ext_modules=[Extension("synq_fast._C", sources=[])],
    cmdclass={"build_ext": BuildNative},
    packages=[
        *find_packages(include=["synq_fast", "synq_fast.*"]),
        "synq_fast.kernels",
        "synq_fast.benchmarks",
        "synq_fast.benchmarks.baselines",
    ],
    package_dir={"synq_fast.kernels": "kernels", "synq_fast.benchmarks": "benchmarks"},
)
