"""Every test has its own order of threads and blocks, the same each time it runs."""

import ctypes
import zlib

import pytest

from tests.emulation.build import LIBRARIES


@pytest.fixture(autouse=True)
def random_schedule(request: pytest.FixtureRequest) -> None:
    for library in LIBRARIES.values():
        library.set_seed(ctypes.c_uint64(zlib.crc32(request.node.nodeid.encode())))
