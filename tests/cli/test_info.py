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
