"""What a plain log says of time."""

import io

import pytest

from synq_fast.runtime import progress
from synq_fast.runtime.progress import Phase, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_the_first_line_says_how_long_it_will_take(clock, capsys):
    phase = Phase("synthesis", 1000, None, True)
    clock(40)
    phase.update(10, {"loss": 1.0}, images=2)
    assert lines(capsys) == ["synthesis: 10/1000  loss 1  0.05 images/s  40 s, about 66 min left"]
    clock(3960)
    phase.update(1000, {})
    assert lines(capsys) == ["synthesis: 1000/1000    67 min"]


def test_a_resumed_phase_counts_what_it_does_itself(clock, capsys):
    phase = Phase("fine-tuning", 100, None, True)
    phase.update(80, {})
    clock(10)
    phase.update(90, {})
    assert lines(capsys)[-1].endswith("10 s, about 10 s left")


def test_parts_in_turn_count_their_images(clock, capsys):
    phase = Phase("reconstruction", 20, None, True)
    report = phase.in_turn(10, images=320)
    clock(10)
    report({"step": 10})
    clock(10)
    report({"step": 5})
    first, second = lines(capsys)
    assert "10/20" in first and "32 images/s" in first
    assert "15/20" in second and "24 images/s" in second


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (1000, "17 min"),
        (7200, "2 h"),
        (93600, "26 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_phase_within_another_shares_its_bars(monkeypatch):
    reporter = progress.Reporter()
    reporter.console = progress.Console(file=io.StringIO(), force_terminal=True)
    with reporter.phase("fine-tuning", 4) as outer:
        outer.update(1, {})
        with reporter.phase("refresh", 2) as inner:
            inner.update(2, {})
            bars = reporter._bars
            assert [task.description for task in bars.tasks] == ["fine-tuning", "refresh"]
        assert [task.description for task in bars.tasks] == ["fine-tuning"]
        outer.update(4, {})
    with reporter.phase("next", 1):
        assert reporter._bars is not bars
