"""How block shapes are chosen: by prediction here, by a clock that is pretended."""

from __future__ import annotations

import json
import os
from itertools import count

import pytest
import torch

from benchmarks import block_shapes, cuda_timing
from benchmarks.block_shape_cases import Case
from benchmarks.block_shapes import (
    Outcome,
    candidates,
    choose,
    main,
    without_spills,
    written,
)
from benchmarks.cuda_timing import Sample
from benchmarks.machine_code import MachineCodeError, disassembler_of

triton = pytest.importorskip("triton", reason="Triton is not installed")


def case(dtype: torch.dtype = torch.float32, calls=()) -> Case:
    return Case("log_kernel", dtype, "flat", calls)


def test_candidates():
    assert candidates(case(), (2048, 4)) == [
        *((2048, 4), (512, 4), (1024, 4)),
        *((1024, 8), (2048, 8), (4096, 8)),
    ]
    assert (1024, 4) in candidates(case(torch.bfloat16), None)
    # Packed codes are read as words.
    assert (256, 4) in candidates(case(torch.int8), None)


@pytest.mark.parametrize(
    ("outcomes", "place"),
    [
        ([Outcome((512, 4), 2.0), Outcome((1024, 4), 1.0)], 1),
        # Equal but for noise: the first is the present one.
        ([Outcome((512, 4), 1.005), Outcome((1024, 4), 1.0)], 0),
        ([Outcome((512, 4), 1.0, 1.9), Outcome((1024, 4), 1.005, 1.5)], 1),
        ([Outcome((512, 4), 1.0, fits=False), Outcome((1024, 4), 3.0)], 1),
        ([Outcome((512, 4), 2.0, fits=False), Outcome((1024, 4), 1.0, fits=False)], 1),
    ],
)
def test_the_choice(outcomes, place):
    assert choose(outcomes) is outcomes[place]


def test_what_spills_on_another_architecture_is_not_chosen():
    outcomes = [Outcome((512, 4), 3.0), Outcome((1024, 4), 1.0), Outcome((2048, 4), 2.0)]
    asked = []

    def spilling(shape):
        asked.append(shape)
        return shape == (1024, 4)

    kept = without_spills(outcomes, spilling)
    assert choose(kept).shape == (2048, 4) and asked == [(1024, 4), (2048, 4)]
    assert [outcome.fits for outcome in kept] == [True, False, True]
    # Where nothing fits, the fastest is taken all the same.
    kept = without_spills(outcomes, lambda shape: True)
    assert choose(kept).shape == (1024, 4) and not any(outcome.fits for outcome in kept)


def test_a_table_is_read_as_it_was_written(tmp_path):
    from synq_fast.kernels._block_shapes import PATH, SHAPES, read_shapes

    path = tmp_path / "table.json"
    path.write_text(written(SHAPES, "some card", "measured"))
    assert read_shapes(path) == SHAPES
    table = json.loads(path.read_text())
    assert (table["card"], table["how"]) == ("some card", "measured")
    # What is committed is what the script writes.
    table = json.loads(PATH.read_text())
    assert PATH.read_text() == written(SHAPES, table["card"], table["how"])


def test_a_gpu_is_asked(monkeypatch, tmp_path, capsys):
    """Of each shape the launcher is called with it, and the fastest is written."""
    from synq_fast.kernels import _block_shapes

    key, seen = case().key, []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A card")
    asked = [case(calls=((lambda: _block_shapes.block_shape(*key), 0),))]
    monkeypatch.setattr(block_shapes, "cases", lambda *_: asked)
    ticks = count(10, -1)

    def samples(columns):
        seen.append(columns[""]())
        seconds = 1e-3 if seen[-1] == (2048, 8) else 1e-3 * next(ticks)
        return {"": Sample(lambda: seconds)}

    monkeypatch.setattr(cuda_timing, "samples", samples)
    path, before = tmp_path / "table.json", _block_shapes.SHAPES[key]
    assert main(["--output", str(path)]) == 0
    assert seen == candidates(case(), before)
    table = json.loads(path.read_text())
    assert (table["card"], table["how"]) == ("A card", "measured")
    assert table["shapes"] == {"log_kernel": {"flat": {"float32": [2048, 8]}}}
    assert "measured for A card" in capsys.readouterr().out
    assert _block_shapes.SHAPES[key] == before


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
)
def test_without_a_gpu_it_is_predicted(monkeypatch, tmp_path, capsys):
    from synq_fast.kernels._block_shapes import SHAPES, read_shapes

    try:
        disassembler_of()
    except MachineCodeError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(block_shapes, "LANE_BYTES", (16, 64))
    monkeypatch.setattr(block_shapes, "WARPS", (4,))
    path = tmp_path / "table.json"
    arguments = ["--predict", "--kernel", "map_kernel", "--output", str(path)]
    assert main(arguments) == 0
    # What was not asked for stays as it is.
    key = ("map_kernel", torch.float32, "flat")
    chosen = read_shapes(path)
    assert {**chosen, key: None} == {**SHAPES, key: None}
    assert chosen[key] in candidates(case(), SHAPES[key])
    assert json.loads(path.read_text())["how"] == "predicted"
    lines = [line for line in capsys.readouterr().out.splitlines() if "map_kernel" in line]
    assert len(lines) == len(candidates(case(), SHAPES[key]))
    assert sum(line.endswith("yes") for line in lines) == 1
