"""What machine code says of a kernel, and what is predicted from it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from benchmarks import gpu_model, machine_code, roofline
from benchmarks.gpu_model import CARDS, Card, Launch, predict, resident_blocks
from benchmarks.machine_code import Kernel, Loop
from benchmarks.roofline_cases import Case, cases

# A loop of two wide loads that wait together and a narrow one that waits alone, beside an outer
# loop and one that loads less.
CODE = """
        /*0000*/                   LDG.E R9, desc[UR4][R2.64] ;
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   @!P1 LDG.E.64.CONSTANT R10, desc[UR4][R12.64] ;
        /*0030*/                   FADD R20, R7, R20 ;
        /*0040*/                   LDG.E.U16 R14, desc[UR4][R12.64+0x10] ;
        /*0050*/                   FADD R20, R14, R20 ;
        /*0060*/                   STG.E.128 desc[UR4][R16.64], R4 ;
        /*0070*/               @P0 BRA 0x10 ;
        /*0080*/                   LDG.E R9, desc[UR4][R2.64] ;
        /*0090*/                   FADD R20, R9, R20 ;
        /*00a0*/               @P2 BRA 0x80 ;
        /*00b0*/               @P3 BRA 0x0 ;
        /*00c0*/                   EXIT ;
        /*00d0*/                   BRA 0xd0;
"""
# Of two loops with products, that which adds is the one that splits.
PRODUCTS = """
        /*0000*/                   LDS R9, [R2] ;
        /*0010*/                   HMMA.1688.F32.TF32 R8, R48, R9, R8 ;
        /*0020*/                   HMMA.1688.F32.TF32 R8, R48, R9, R8 ;
        /*0030*/               @P0 BRA 0x0 ;
        /*0040*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0050*/                   FADD R4, R4, -R5 ;
        /*0060*/              @!P1 HMMA.1688.F32.TF32 R8, R4, R9, R8 ;
        /*0070*/               @P0 BRA 0x40 ;
        /*0080*/                   FADD R4, R4, -R5 ;
        /*0090*/               @P0 BRA 0x80 ;
"""
# One way in wide loads and one in narrow ones, a division's slow path, and a way that loads less.
STRAIGHT = """
        /*0000*/                   LDG.E R9, desc[UR4][R2.64] ;
        /*0010*/               @P1 BRA 0x110 ;
        /*0020*/               @P0 BRA 0xa0 ;
        /*0030*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0040*/                   LDG.E R5, desc[UR4][R2.64+0x4] ;
        /*0050*/                   LDG.E R6, desc[UR4][R2.64+0x8] ;
        /*0060*/                   LDG.E R7, desc[UR4][R2.64+0xc] ;
        /*0070*/                   FADD R4, R4, R9 ;
        /*0080*/                   STG.E desc[UR4][R16.64], R4 ;
        /*0090*/                   BRA 0x110 ;
        /*00a0*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*00b0*/               @P2 BRA 0xe0 ;
        /*00c0*/                   MOV R8, 0xe0 ;
        /*00d0*/                   CALL.REL.NOINC 0x120 ;
        /*00e0*/                   FADD R4, R4, R9 ;
        /*00f0*/                   STG.E.128 desc[UR4][R16.64], R4 ;
        /*0100*/                   EXIT ;
        /*0110*/                   EXIT ;
        /*0120*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0130*/                   RET.REL.NODEC R8 0x0 ;
        /*0140*/                   BRA 0x140;
"""
CARD = Card(copy=1e12, multiprocessors=100, clock=1e9)


def kernel(registers: int = 32, shared: int = 0, loop: Loop | None = None) -> Kernel:
    return Kernel("k", registers, shared, loop)


def test_the_hot_loop():
    loop = machine_code.hot_loop(CODE)
    assert loop == Loop(instructions=7, loaded=16 + 8 + 2, stored=16, in_flight=24)
    assert machine_code.hot_loop(CODE.replace("LDG", "LDS")) is None


def test_the_product_loop():
    assert machine_code.product_loop(PRODUCTS) == Loop(4, 16, 0, 16, products=1)
    assert machine_code.product_loop(CODE) is None


def test_the_way_through():
    # The first load, three branches and all of the wide block that is no slow path.
    assert machine_code.way_through(STRAIGHT) == Loop(8, loaded=20, stored=16, in_flight=20)
    assert machine_code.way_through(STRAIGHT.replace("LDG", "LDS")) is None
    # It ends where the kernel does.
    assert machine_code.way_through(STRAIGHT.replace("@P1 BRA", "BRA")) == Loop(3, 4, 0, 4)


def test_a_kernel_without_a_loop():
    # Of 80 bytes loaded 16 belong to channels: a launch says what its threads need.
    code = dataclasses.replace(kernel(64), way=Loop(100, loaded=80, stored=64, in_flight=80))
    launch = Launch("s", "k", moved=400 * 256 * 128, items=400)
    assert gpu_model.bytes_of_turn(code, launch) == 128
    found = predict(CARD, code, launch)
    waiting = 400 * 256 * 80 / gpu_model.LATENCY * 128 / 80
    issued = 100 * 4e9 / 100 * 32 * 128
    assert min(1e12, waiting, issued) == 1e12 and found.limit == "memory"
    slow = dataclasses.replace(code, way=Loop(10_000, 80, 64, 80))
    seconds = predict(CARD, slow, launch).seconds - gpu_model.LAUNCH
    assert seconds == pytest.approx(launch.moved / (issued / 100))


def test_what_limits_products():
    code = Kernel(
        "k", 64, 0, None, Loop(instructions=40, loaded=16, stored=0, in_flight=16, products=6)
    )
    launch = Launch("s", "k", 4e8, items=400, turns=10)
    assert predict(CARD, code, launch).limit == "memory"
    for changed, limit, seconds in (
        # Four pieces of work for each multiprocessor.
        ({"moved": 1.0, "turns": 1000}, "tensor cores", 4 * 1000 * 6 * 2 / 1e9),
        ({"moved": 1.0, "beside": 100_000}, "instructions", 4 * (400 + 100_000) / 4 / 1e9),
        ({"cached": 55e9}, "cache", (4e8 + 55e9) / 5.5e12),
    ):
        found = predict(CARD, code, dataclasses.replace(launch, **changed))
        assert found.limit == limit
        assert found.seconds - gpu_model.LAUNCH == pytest.approx(seconds)
    # A piece of work of a second wave takes as long as one of each multiprocessor.
    one = dataclasses.replace(launch, moved=1.0, turns=1000, items=401)
    found = predict(CARD, code, one)
    assert found.seconds - gpu_model.LAUNCH == pytest.approx(5 * 1000 * 12 / 1e9)
    with pytest.raises(machine_code.MachineCodeError, match="no loop with products"):
        predict(CARD, kernel(), launch)


def test_shared_memory_of_a_launch_counts():
    assert resident_blocks(CARD, kernel(32, 50_000), 256, 50_000) == 2


def test_low_pass_chunks():
    """What lies between the passes leaves the device's memory where it is divided."""
    found = {case.name: case for case in cases() if case.name.startswith("low_pass")}
    large = found["low_pass (256,3,224,224) bfloat16 contiguous"]
    values = 256 * 3 * 224 * 224
    assert sum(x.moved * x.times for x in large.before) == (2 + 2) * values + 2 * 4 * values
    assert sum(x.moved * x.times for x in large.after) == pytest.approx((2 + 2) * values)
    assert [x.times for x in large.after] == [4, 4]
    # (57, 55, 56, 56) rows in blocks of 16 and of 32, as many columns in steps of 8.
    assert {x.turns for x in large.before} == {4 * (8 + 7 + 7 + 7)}
    assert {x.turns for x in large.after} == {2 * (8 + 7 + 7 + 7)}


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "blocks"),
    [(32, 0, 256, 8), (64, 0, 256, 4), (40, 0, 256, 6), (64, 0, 1024, 1), (16, 0, 32, 32),
     (32, 100_000, 256, 2), (255, 0, 1024, 1)],
)  # fmt: skip
def test_how_many_blocks_fit(registers, shared, threads, blocks):
    assert resident_blocks(CARD, kernel(registers, shared), threads) == blocks


def test_what_limits_a_launch():
    enough = Loop(instructions=1, loaded=64, stored=0, in_flight=64)
    full = Launch("s", "k", moved=1e9, items=400)
    found = predict(CARD, kernel(64, loop=enough), full)
    assert (found.limit, found.blocks) == ("memory", 4)
    assert found.seconds == pytest.approx(1e-3 + gpu_model.LAUNCH)
    # Of a second wave, one block is left with the waiting of its own loads.
    left = predict(CARD, kernel(64, loop=enough), Launch("s", "k", 401e6, items=401))
    of_one = 1e6 * gpu_model.LATENCY / (256 * 64)
    assert left.seconds - gpu_model.LAUNCH == pytest.approx(400e6 / 1e12 + of_one)
    fewer = predict(CARD, kernel(64, loop=enough), Launch("s", "k", 1e9, 400, in_flight=1))
    assert fewer.limit == "loads in flight"
    alone = predict(CARD, kernel(64, loop=enough), Launch("s", "k", 1e9, items=1))
    assert alone.limit == "loads in flight"
    assert alone.seconds > 1e9 * gpu_model.LATENCY / (256 * 64)
    slow = predict(CARD, kernel(64, loop=Loop(10_000, 64, 0, 64)), full)
    assert slow.limit == "instructions"
    assert slow.seconds - gpu_model.LAUNCH == pytest.approx(1e9 / (100 * 4e9 / 1e4 * 32 * 64))
    rounds = predict(CARD, kernel(), Launch("s", "k", rounds=10, times=3))
    assert rounds.seconds == pytest.approx(3 * (gpu_model.LAUNCH + 10 * gpu_model.CACHED_LATENCY))
    with pytest.raises(machine_code.MachineCodeError, match="no loop"):
        predict(CARD, kernel(), full)


def test_a_row():
    class Tree:
        def kernel(self, launch: Launch) -> Kernel:
            return kernel(64, loop=Loop(8, 64, 64, 64))

    launches = (Launch("s", "k", 2e7, items=400), Launch("s", "k", rounds=1, times=2))
    case = Case("name", launches, launches[:1])
    values = roofline.row(CARD, case, "x", launches, Tree())
    found = dict(zip(roofline.COLUMNS, values, strict=True))
    assert found["launches"] == "3" and found["MB"] == "20" and found["in flight"] == "64"
    assert found["KB per SM"] == 64.0 and found["instructions"] == 0.2
    # 20 us of bytes, three launches, two rounds.
    assert found["us"] == "27" and found["of copy"] == 0.75


def test_a_row_of_products():
    class Tree:
        def kernel(self, launch: Launch) -> Kernel:
            return Kernel("k", 64, 0, None, Loop(20, 16, 0, 16, products=1))

    launches = (Launch("s", "k", 4e6, items=100, cached=4e6, turns=10, beside=300),)
    values = roofline.row(CARD, Case("name", launches, launches), "x", launches, Tree())
    found = dict(zip(roofline.COLUMNS, values, strict=True))
    # 500 of each of a hundred blocks' threads, a warp's together, for two million values.
    assert found["instructions"] == 0.8 and found["limit"] == "memory"


def test_every_case_names_sources_that_exist():
    root = roofline.Path(roofline.__file__).parents[1] / "csrc" / "cuda"
    found = cases()
    assert len({case.name for case in found}) == len(found) >= 15
    for case in found:
        assert case.needed > 0
        for launch in case.after:
            assert (root / f"{launch.source}.cu").is_file()
            assert launch.items > 0 and 0 < launch.busy <= 1


def test_the_command():
    command = [sys.executable, "-m", "benchmarks.roofline"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    text = " ".join(done.stdout.split())
    assert "Predictions, not measurements" in text and "--against" in text
    # A commit that does not exist, wherever there are compilers or not.
    wrong = [*command, "--against", "no-such-commit"]
    done = subprocess.run(wrong, capture_output=True, text=True, cwd=roofline.Path.cwd())
    assert done.returncode == 1 and done.stdout == ""
    assert "no-such-commit" in done.stderr


def test_cards():
    assert CARDS["H100"] == Card(3.0e12, 132, 1.7e9)
