"""What is predicted of products of codes, from what Triton compiles without a GPU."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import roofline_int8
from benchmarks.gpu_model import CARDS, LAUNCH, Card
from benchmarks.machine_code import Kernel, MachineCodeError, disassembler_of, length
from benchmarks.roofline_int8 import COLUMNS, LAYERS, row

pytest.importorskip("triton", reason="Triton is not installed")

CARD = Card(1e12, 100, 1e9, cache=2e12, int8=4096.0, bf16=2048.0)


def test_the_length_ends_before_slow_paths():
    texts = ("MOV R1, R2", "@P0 EXIT", "IMMA R0", "EXIT", "MUFU.RCP R1, R2", "RET")
    code = "\n".join(f"/*{16 * place:04x}*/ {text} ;" for place, text in enumerate(texts))
    assert length(code) == 4 and length("/*0000*/ NOP ;") == 1


def pretended(monkeypatch, of_turn, after, registers=64, threads=256):
    from synq_fast.kernels.int8_product import DEPTH

    def launched(layer, result, capability, folder):
        found = round(of_turn * layer[2] / DEPTH + after)
        kernel = Kernel("k", registers, 0, None, length=found)
        return SimpleNamespace(threads=threads, kernel=kernel)

    monkeypatch.setattr(roofline_int8, "launched", launched)


def predicted(tmp_path, *layer, result="codes"):
    values = row(CARD, "name", layer, result, 90, tmp_path)
    return dict(zip(COLUMNS, values, strict=True))


def test_what_is_slowest_decides(monkeypatch, tmp_path):
    pretended(monkeypatch, of_turn=1, after=0)
    # Ten tiles for each multiprocessor: 128 rows in, 128 columns of codes out.
    found = predicted(tmp_path, 128 * 1000, 128, 1024)
    assert found["limit"] == "memory" and found["us"] == round(1e6 * LAUNCH + 147.6, 1)
    assert (
        found["bf16, at best"] == round(1e6 * LAUNCH + 295.2, 1) and found["times faster"] == 1.99
    )
    # Sixteen times the columns read the rows sixteen times through the cache, 20 bytes a cycle.
    found = predicted(tmp_path, 128 * 1000, 128 * 16, 1024)
    assert found["limit"] == "cache" and found["us"] == round(2 + 160 * (2**18 + 2**14) / 2e4, 1)
    # A thousand instructions of eight warps, four in a cycle; half of the tiles are late.
    pretended(monkeypatch, of_turn=1, after=40_000)
    assert predicted(tmp_path, 128 * 150, 128, 64)["us"] == round(2 + 2 * 80.002, 1)
    # Registers for one block alone, whose sums and codes wait for each other.
    pretended(monkeypatch, of_turn=1, after=4000, registers=255)
    found = predicted(tmp_path, 128 * 100, 128, 1024)
    assert found["limit"] == "order" and found["us"] == round(2 + 8 + (2**18 + 2**14) / 2e4, 1)


def test_turns_that_are_not_written_out_are_refused(monkeypatch, tmp_path):
    pretended(monkeypatch, of_turn=0, after=100)
    with pytest.raises(MachineCodeError, match="not written out"):
        predicted(tmp_path, 128, 128, 1024)


def test_the_layers():
    assert len({name for name, *_ in LAYERS}) == len(LAYERS) == 16
    assert CARDS["A100"].int8 == 2 * CARDS["A100"].bf16 == CARDS["H100"].bf16


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
)
def test_a_product_is_compiled_and_not_run(tmp_path, monkeypatch):
    try:
        disassembler_of()
    except MachineCodeError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    layer = (128 * 132, 128, 64)
    codes, numbers = (
        roofline_int8.product(CARDS["H100"], layer, result, 90, tmp_path)
        for result in ("codes", "float32")
    )
    assert codes.tile == (128, 128) and codes.blocks == numbers.blocks == 2
    # To be put on a grid costs a value ten instructions, not thirty as with a division.
    assert 4 < numbers.beside < 15 and 12 < codes.beside < 25


def test_the_command():
    command = [sys.executable, "-m", "benchmarks.roofline_int8", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Predictions, not measurements" in " ".join(done.stdout.split())
