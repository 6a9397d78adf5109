"""The CUDA C++ kernels of the range ops, compiled for the CPU and run thread by thread."""

import ctypes

import pytest
import torch

from synq_fast import reference
from tests.emulation.build import build, shifted
from tests.golden_cases import golden_cases
from tests.kernel_cases import DTYPES, assert_same_bits
from tests.ops.cases import special_values
from tests.range_cases import SIZES, assert_best, distribution, search_cases

CANDIDATES = 9


class UpdateParams(ctypes.Structure):
    """UpdateRangeParams of csrc/update_range.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "state_min", "state_max", "step")),
        ("workspace", ctypes.c_void_p),
        ("elements", ctypes.c_int64),
        ("beta", ctypes.c_float),
        ("gain", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    ]


class SearchParams(ctypes.Structure):
    """SearchRangeParams of csrc/search_range.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "range_min", "range_max", "workspace")),
        ("elements", ctypes.c_int64),
        ("candidates", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("norm", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    ]


class Kernels:
    """Calls the launchers as the ops do, with memory that starts `shift` elements off."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.shift = 0

    def run(self, name: str, params: ctypes.Structure, dtype: torch.dtype) -> None:
        size = getattr(self.library, f"{name}_workspace")(ctypes.byref(params))
        workspace = torch.full((size + 1,), float("nan"), dtype=dtype)
        params.workspace = workspace.data_ptr()
        assert getattr(self.library, name)(ctypes.byref(params)) == 0
        assert workspace[size].isnan(), f"{name} wrote beyond its workspace"

    def update(self, x, state_min, state_max, step, beta) -> None:
        memory = shifted(x, self.shift)
        params = UpdateParams(
            x=memory.data_ptr(), state_min=state_min.data_ptr(), state_max=state_max.data_ptr(),
            step=step.data_ptr(), elements=x.numel(), beta=beta, gain=1 - beta,
            dtype=DTYPES.index(x.dtype),
        )  # fmt: skip
        self.run("update", params, torch.float32)

    def search(self, x, bits, candidates=CANDIDATES, norm=2.4):
        memory = shifted(x, self.shift)
        found = torch.full((2,), float("nan"))
        params = SearchParams(
            x=memory.data_ptr(), range_min=found[0].data_ptr(), range_max=found[1].data_ptr(),
            elements=x.numel(), candidates=candidates, bits=bits, norm=norm,
            dtype=DTYPES.index(x.dtype),
        )  # fmt: skip
        self.run("search", params, torch.float64)
        return found[0], found[1]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    library = build("ranges", tmp_path_factory)
    library.update_workspace.restype = ctypes.c_int64
    library.search_workspace.restype = ctypes.c_int64
    return library


@pytest.fixture(params=[1, 3], ids=["1 multiprocessor", "3 multiprocessors"])
def kernels(request, library) -> Kernels:
    library.set_multiprocessors(request.param)
    return Kernels(library)


def check_update(kernels: Kernels, batches, name) -> None:
    results = []
    for update in (kernels.update, reference.update_range):
        state = torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for batch in batches:
            update(batch, *state, 0.7)
        results.append(state)
    for mine, theirs in zip(*results, strict=True):
        assert_same_bits(mine, theirs, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_update(kernels: Kernels, dtype: torch.dtype, shift: int) -> None:
    kernels.shift = shift
    for size in SIZES:
        x = torch.randn(size).to(dtype)
        check_update(kernels, [x, x * -3, x[:1]], f"size {size} shifted by {shift}")


def test_update_with_special_values(kernels: Kernels) -> None:
    values = special_values()
    for first in (values[2:3], values[3:4], values[:1], values):
        for count in (1, 9000):
            check_update(kernels, [first.repeat(count), torch.ones(3)], f"{first[0]}")


def test_search(kernels: Kernels) -> None:
    for _, x, bits in search_cases():
        assert_best(x, kernels.search(x, bits), bits, CANDIDATES)
    for norm in (0.5, 1.0, 4.0):
        x = distribution("cubed", 700)
        assert_best(x, kernels.search(x, 3, norm=norm), 3, CANDIDATES, norm)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_search_of_all_sizes(kernels: Kernels, dtype: torch.dtype) -> None:
    kernels.shift = 1
    for size in (*(size for size in SIZES if size < 5000), 2048, 2049):
        x = distribution("cubed", size).to(dtype)
        assert_best(x, kernels.search(x, 3), 3, CANDIDATES)


def test_search_where_blocks_take_several_tiles(library) -> None:
    library.set_multiprocessors(1)
    x = distribution("cubed", 16 * 2048 * 2 + 77)
    assert_best(x, Kernels(library).search(x, 3, candidates=4), 3, 4)


@pytest.mark.parametrize("candidates", [1, 80, 100])
def test_number_of_candidates(kernels: Kernels, candidates: int) -> None:
    x = distribution("cauchy", 500)
    assert_best(x, kernels.search(x, 4, candidates), 4, candidates)


def test_search_without_numbers(kernels: Kernels) -> None:
    for value in (float("nan"), float("inf"), float("-inf"), 3e38):
        x = torch.linspace(-1, 2, 300)
        x[3] = value
        x[4] = -3e38 if value == 3e38 else 0.0
        expected = reference.search_range(x, 4, candidates=CANDIDATES)
        for mine, theirs in zip(kernels.search(x, 4), expected, strict=True):
            assert_same_bits(mine, theirs, str(value))


def test_golden_values(kernels: Kernels, golden) -> None:
    for _, case in golden_cases(golden("mse_range")):
        low, high = kernels.search(case["x"], case["bits"], 80)
        assert (low.item(), high.item()) == (case["min"], case["max"])
