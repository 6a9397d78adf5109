import os
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.interpreter import remember

ROOT = Path(__file__).parent.parent

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("repeatable")

if os.environ.get("TRITON_INTERPRET") == "1":
    remember()


def data_root() -> Path:
    return Path(os.environ.get("SYNQ_FAST_DATA") or ROOT.parent / "shared" / "data")


def golden_root() -> Path:
    return Path(os.environ.get("SYNQ_FAST_GOLDEN") or data_root().parent / "golden")


@pytest.fixture
def golden() -> Callable[[str], Mapping[str, np.ndarray]]:
    """Loads a file of golden values by its name without the suffix."""

    def load(name: str) -> Mapping[str, np.ndarray]:
        path = golden_root() / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no golden values: {path.name} is not in SYNQ_FAST_GOLDEN")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    return load


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills fresh tensors with NaN (integers with their maximum), in Python and in C++."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


# Networks run on ops whose threads are tested with the ops: more of them than one beside another
# worker's would be time without finding more.
ONE_THREAD = frozenset(
    {
        *("bank", "cli", "data", "deployment", "engine", "faults", "finetune", "graph", "models"),
        *("optimize", "quant", "recipes", "reporting", "storage", "studies", "synthesis"),
    }
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Runs the tests of whole networks, and all their fixtures, in one thread.

    Their processes have the machine's.
    """
    folder = item.path.relative_to(ROOT / "tests").parts[0]
    before = torch.get_num_threads()
    if folder in ONE_THREAD:
        torch.set_num_threads(1)
    try:
        return (yield)
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)
