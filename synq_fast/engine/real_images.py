"""Real images that are looked at, and used for nothing else."""

from __future__ import annotations

import os

from torch import Tensor

from synq_fast.bank.images import spread
from synq_fast.data import DATASETS, EvaluationSet, load_dataset, picture_files
from synq_fast.models import Teacher
from synq_fast.storage.paths import user_path


def real_images(
    given: str | os.PathLike[str] | EvaluationSet, network: Teacher, count: int
) -> tuple[str, Tensor]:
    """A name and up to ``count`` images (N, C, H, W) as the network takes them.

    Args:
        given: a folder of images in any arrangement, or a set that ``load_dataset`` takes.
        network: says how images are normalised.
        count: how many, from all over the set.

    Raises:
        DataError: they cannot be read.
    """
    chosen: EvaluationSet
    if isinstance(given, EvaluationSet):
        chosen, name = given, given.name
    else:
        path = user_path(given)
        name = path.name
        if path.is_dir() and str(given) not in DATASETS:
            chosen = picture_files(path, network)
        else:
            chosen = load_dataset(given, network)
    return name, network.normalize(chosen.pixels(spread(len(chosen), count).tolist()))
