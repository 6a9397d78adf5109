"""What is predicted of Triton's kernels, from what it compiles without a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from benchmarks import roofline_triton
from benchmarks.gpu_model import CARDS, predict
from benchmarks.machine_code import MachineCodeError, disassembler_of
from benchmarks.roofline import Path
from benchmarks.roofline_triton import Call, Compiled, calls

triton = pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
)
def test_a_call_is_compiled_and_not_run(tmp_path, monkeypatch) -> None:
    from synq_fast import kernels

    try:
        disassembler_of()
    except MachineCodeError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    jit, driver = triton.runtime.jit.JITFunction, triton.runtime.driver
    before = jit.run, driver._active
    x = torch.zeros(1, 32, 64, 64).to(memory_format=torch.channels_last)
    call = Call("name", lambda kernels: kernels.channel_moments(x), {"moments_kernel": 1 << 19})
    compiled = Compiled(call, kernels, 90, tmp_path)
    assert (jit.run, driver._active) == before
    reading, joining = compiled.launches
    # Tiles of 16 rows, eight of them for a program at least.
    assert (reading.kernel, reading.items, reading.threads) == ("moments_kernel", 32, 128)
    assert reading.moved == 1 << 19 and joining.moved == 0 < joining.rounds
    code = compiled.kernel(reading)
    assert code.loop is not None
    # Four rows of sixteen bytes a turn, of which the scheduler puts three or four in flight.
    assert code.loop.loaded == 64 and code.loop.in_flight >= 32
    assert 0 < code.registers <= 64
    assert predict(CARDS["H100"], code, reading).seconds > 0


def test_the_calls() -> None:
    found = calls()
    assert len({call.name for call in found}) == len(found) == 20
    names = {"partials_kernel", "moments_kernel", "gradient_kernel"}
    names |= {"layers_partials_kernel", "layers_gradient_kernel"}
    assert {name for call in found for name in call.moved} == names


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
)
def test_layers_share_launches(tmp_path, monkeypatch) -> None:
    from synq_fast import kernels

    try:
        disassembler_of()
    except MachineCodeError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    forward, backward = (call for call in calls() if "ResNet-20 at 256 float32 ch" in call.name)
    compiled = Compiled(forward, kernels, 90, tmp_path)
    # Widths of 16, 32 and 64 channels are reduced by tiles of their own.
    names = [launch.kernel for launch in compiled.launches]
    reading = ["layers_partials_kernel"] * 3
    assert names == ["words_kernel"] * 2 + [*reading, "layers_finish_kernel", "total_kernel"]
    nbytes = 4 * 256 * (7 * 16 * 32**2 + 6 * 32 * 16**2 + 6 * 64 * 8**2)
    assert sum(launch.moved for launch in compiled.launches) == pytest.approx(nbytes)
    assert compiled.launches[2].moved == pytest.approx(4 * 256 * 7 * 16 * 32**2)
    compiled = Compiled(backward, kernels, 90, tmp_path)
    assert [launch.kernel for launch in compiled.launches][2:] == ["layers_gradient_kernel"]
    loop = compiled.kernel(compiled.launches[-1]).loop
    assert loop is not None and (loop.loaded, loop.stored) == (64, 64)


def test_the_command() -> None:
    command = [sys.executable, "-m", "benchmarks.roofline_triton"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "Predictions, not measurements" in " ".join(done.stdout.split())
    wrong = [*command, "--against", "no-such-commit"]
    done = subprocess.run(wrong, capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 1 and done.stdout == "" and "no-such-commit" in done.stderr


def test_launchers_of_another_tree(monkeypatch, tmp_path) -> None:
    for name in [n for n in sys.modules if f"{n}.".startswith("synq_fast.kernels.")]:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("from synq_fast.kernels._one import one")
    (tmp_path / "kernels" / "_one.py").write_text("one = 1")
    assert roofline_triton.kernels_of(tmp_path).one == 1
