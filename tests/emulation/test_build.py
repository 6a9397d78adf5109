"""Which compiled libraries the folder of emulated kernels holds."""

import os
import time

from tests.emulation.build import FOLDER, KEPT_SECONDS, remove_older, sources


def test_byte_code_is_no_source() -> None:
    """It appears while tests run: two workers would take their libraries for different ones."""
    found = sources()
    assert FOLDER / "cuda_on_cpu.h" in found and FOLDER / "low_pass.cpp" in found
    assert not any("__pycache__" in path.parts or path.suffix == ".py" for path in found)


def test_only_what_no_run_could_need_is_removed(tmp_path) -> None:
    long_ago = time.time() - 2 * KEPT_SECONDS
    for name, old in [("a-1", True), ("a-2", False), ("a-3", True), ("b-1", True)]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernels.so").touch()
        (tmp_path / f"{name}.done").touch()
        for path in (tmp_path / name, tmp_path / f"{name}.done"):
            os.utime(path, (long_ago, long_ago) if old else None)
    remove_older(tmp_path / "a-3", "a")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a-2", "a-2.done", "a-3", "a-3.done", "b-1", "b-1.done"}
