"""Small runs, and their reports."""

import warnings
from pathlib import Path

import pytest
import torch

import synq_fast
from synq_fast.errors import SynqFastWarning
from synq_fast.models import load_teacher
from synq_fast.optimize.loop import Loop
from tests.tiny import SHAPE, run


def named_teacher():
    """A teacher that a report finds again by its name."""
    return load_teacher("tests.tiny:tiny_net", input_shape=SHAPE)


def small(output: Path, **options) -> synq_fast.QuantizationResult:
    """A run in a folder."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SynqFastWarning)
        return run(options.pop("teacher", None) or named_teacher(), output=output, **options)


def page_of(folder: Path, **options) -> str:
    """The text of a run's report."""
    torch.manual_seed(0)
    path = folder.parent / f"{folder.name}.html"
    assert synq_fast.report(folder, path, **options) == path
    return path.read_text("utf-8")


def interrupted(folder: Path, after: int, **options) -> None:
    """A run that is stopped after so many steps of all its loops."""
    advance, left = Loop.advance, [after]

    def killed(self):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            small(folder, **options)
