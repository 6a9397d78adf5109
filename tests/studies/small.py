"""The small network, real images for it, and studies of it."""

import warnings

import numpy as np
import torch

import synq_fast
from synq_fast.data import ArraySet
from synq_fast.errors import SynqFastWarning
from tests.tiny import CLASSES, SHAPE, TINY_OVERRIDES, tiny_teacher

OPTIONS = {
    "overhead": {"rounds": 4},
    "noise": {"kinds": ["white", "blocks"], "strengths": [1.0], "cutoffs": [3.0], "steps": 2},
    "cam": {"steps": 2, "images": 6, "layers": 2},
    "labels": {"samples": 16, "bins": 4},
    "spectra": {"cutoffs": [2.0], "images": 8},
}
SEEDS = (0, 1)


def real(count: int = 20) -> ArraySet:
    """Labelled images of the small network's size."""
    pixels = np.random.default_rng(0).random((count, *SHAPE), dtype=np.float32)
    return ArraySet("photographs", pixels, np.arange(count) % CLASSES, tiny_teacher())


def small(name: str, **options) -> synq_fast.StudyResult:
    """A study of the small network."""
    torch.manual_seed(0)
    given = {
        "recipe": "synq-digits",
        "seeds": SEEDS,
        "data": real(),
        "overrides": TINY_OVERRIDES,
        "options": OPTIONS.get(name),
        "progress": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SynqFastWarning)
        return synq_fast.study(name, tiny_teacher(), **{**given, **options})
