import subprocess
import sys

from synq_fast.ops import _installation as info
from synq_fast.ops import available_backends


def test_report_names_everything():
    report = info.report()
    text = info.render(report)
    assert report.backends == available_backends()
    assert report.versions["torch"] in text
    for name, reason in report.backends.items():
        assert name in text and (reason or "available") in text
    for op in report.kernels:
        assert op in text


def test_report_without_a_build():
    built = info.report()
    reason = "cmake was not found; `pip install cmake` and reinstall"
    bare = info.Info(**vars(built) | {"build": {}, "cpu_isa": None, "backends": {"cpu": reason}})
    text = info.render(bare)
    assert reason in text
    assert "none: ops run on the reference" in text


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} -m synq_fast.cli info | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Versions\n", "")
