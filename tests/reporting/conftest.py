"""Runs that the tests of reports share."""

import numpy as np
import pytest

import synq_fast
from synq_fast.finetune.reconstruction import iteration
from tests import transformers
from tests.reporting.runs import small
from tests.tiny import CLASSES, SHAPE, labelled
from tests.transformers import tiny_vit


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of every stage, measured also on its way, and what it returned."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    blocks = {"blocks.images": 8, "blocks.steps": 3, "blocks.batch_size": 4}
    stages = ["synthesis", "calibration", "blocks", "finetune"]
    overrides = {"stages": stages, "quantization.weight_range": "learned", **blocks}
    overrides["finetune.distillation.difficulty_threshold"] = 1.0
    overrides |= {"quantization.learn_ranges": True, "quantization.ste": "clip"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iteration, "LOG_EVERY", 2)
        result = small(folder, overrides=overrides, evaluation=labelled(), evaluate_every=2)
    return folder, result


@pytest.fixture(scope="session")
def real_images(tmp_path_factory):
    """An evaluation set in a file, as the small network takes it."""
    path = tmp_path_factory.mktemp("real") / "photographs.npz"
    pixels = np.random.default_rng(0).random((6, *SHAPE), dtype=np.float32)
    np.savez(path, images=pixels, labels=np.arange(6) % CLASSES)
    return path


@pytest.fixture(scope="session")
def finished_page(finished, real_images):
    """Its report's path."""
    path = finished[0].parent / "finished.html"
    return synq_fast.report(finished[0], path, images=real_images)


@pytest.fixture(scope="session")
def widths(tmp_path_factory):
    """Two widths that share their images, beside a folder that is no run."""
    folder = tmp_path_factory.mktemp("widths") / "runs"
    for bits in ("w2a2", "w8a4"):
        options = {"overrides": {"finetune.steps": 2}, "evaluation": labelled()}
        small(folder / bits, bits=bits, bank=folder / "bank", **options)
    (folder / "notes").mkdir()
    return folder


@pytest.fixture(scope="session")
def transformer(tmp_path_factory):
    """A quantized transformer, given as a teacher, and that teacher."""
    folder = tmp_path_factory.mktemp("transformer") / "run"
    overrides = {"blocks.images": 8, "blocks.steps": 2, "blocks.batch_size": 4}
    small(
        folder,
        teacher=tiny_vit(),
        recipe="synq-fast-vit",
        overrides=overrides,
        evaluation=labelled(transformers.SHAPE),
    )
    return folder, tiny_vit()


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    """A run whose images come from a generator."""
    folder = tmp_path_factory.mktemp("generated") / "run"
    few = {"generator.steps": 12, "generator.batch_size": 6, "generator.latent": 5}
    result = small(folder, recipe="gdfq-digits", overrides=few)
    return folder, result
