import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str) -> str:
    """What an example prints, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_ops_recovers_what_two_bits_lost() -> None:
    pytest.importorskip("sklearn", reason="the example needs scikit-learn")
    text = run("import_ops.py", "--bits", "2")
    accuracies = [float(value) for value in re.findall(r"([\d.]+) %", text)]
    assert len(accuracies) == 3
    teacher, calibrated, trained = accuracies
    assert teacher > 95
    assert calibrated < teacher - 2
    assert trained > calibrated + 1 and trained > teacher - 2
    assert "at most 4 different weights in a channel" in text


def test_examples_use_the_public_ops_only() -> None:
    for path in EXAMPLES.glob("*.py"):
        imports = re.findall(r"^ *(?:from|import) +synq_fast.*$", path.read_text(), re.MULTILINE)
        assert imports == ["from synq_fast import ops"], path.name
