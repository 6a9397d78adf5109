import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_least_recently_used_goes_first(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ not found")
    program = tmp_path / "lru_cache"
    source = ROOT / "tests" / "ops" / "lru_cache.cpp"
    command = [compiler, "-std=c++17", "-pthread", f"-I{ROOT / 'csrc'}", source, "-o", program]
    subprocess.run(command, check=True)
    assert subprocess.run([program], capture_output=True, text=True).stdout == "passed\n"
