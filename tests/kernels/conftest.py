import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def interpreter() -> None:
    # Triton reads the variable when it is imported: it must be there when the process starts.
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip(
            "TRITON_INTERPRET=1 is not set; "
            "tests/conformance/test_processes.py runs these in their own process"
        )
    pytest.importorskip("triton", reason="Triton is not installed")
