"""The emulator sees what would go wrong on a GPU: each defect, and its right form, many seeds."""

import ctypes

import pytest
import torch

from tests.emulation.build import build

SEEDS = range(10)
FAULTS = {
    "load": "misaligned",
    "store": "misaligned",
    "shared_store": "shared memory",
    "past_the_end": "beyond its array",
    "sum": "overflows",
    "shift": "too many bits",
    "null": "null",
    "exchange": "has left",
    "mask": "leaves out",
}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return build("defects")


def call(library: ctypes.CDLL, name: str, seed: int, right: bool) -> tuple[int, torch.Tensor]:
    """Returns the launch's error and what the kernel wrote."""
    memory = torch.full((1024,), -1.0)
    aligned = memory[(-memory.data_ptr() % 16) // 4 :]
    library.set_seed(ctypes.c_uint64(seed))
    return getattr(library, name)(ctypes.c_void_p(aligned.data_ptr()), right), aligned


RIGHT = {
    "rotate": torch.arange(1, 257).remainder(256).float(),
    "reuse": torch.tensor([0.0, 1.0]).repeat_interleave(256),
    "unwritten": torch.ones(512),
}


@pytest.mark.parametrize("name", RIGHT)
def test_races_and_unwritten_memory_change_the_result(library: ctypes.CDLL, name: str) -> None:
    expected = RIGHT[name]
    for seed in SEEDS:
        error, y = call(library, name, seed, True)
        assert error == 0
        assert torch.equal(y[: expected.numel()], expected)
    wrong = 0
    for seed in SEEDS:
        error, y = call(library, name, seed, False)
        assert error == 0
        wrong += not torch.equal(y[: expected.numel()], expected)
    assert wrong == len(SEEDS)


def test_blocks_have_no_order(library: ctypes.CDLL) -> None:
    results = [call(library, "ordered", seed, True)[1][:64].tolist() for seed in SEEDS]
    assert torch.arange(64.0).tolist() not in results


@pytest.mark.parametrize("name", FAULTS)
def test_faults_end_the_launch(library: ctypes.CDLL, name: str, capfd) -> None:
    assert call(library, name, 0, True)[0] == 0
    assert capfd.readouterr().err == ""
    assert call(library, name, 0, False)[0] != 0
    assert FAULTS[name] in capfd.readouterr().err
    assert call(library, name, 0, True)[0] == 0


def test_a_barrier_that_not_all_reach_ends_the_launch(library: ctypes.CDLL) -> None:
    assert call(library, "divergent", 0, True)[0] == 0
    assert call(library, "divergent", 0, False)[0] != 0


def test_the_same_seed_gives_the_same_order(library: ctypes.CDLL) -> None:
    runs = [call(library, "rotate", seed, False)[1][:256].tolist() for seed in (1, 1, 2)]
    assert str(runs[0]) == str(runs[1])
    assert str(runs[0]) != str(runs[2])
