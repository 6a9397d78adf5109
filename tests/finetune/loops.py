"""Training of the small network, as tests of training and of its checkpoints run it."""

from synq_fast.bank.images import ImageBank
from synq_fast.optimize.loop import Loop
from tests.tiny import tiny_images, tiny_labels, tiny_recipe, tiny_training


def bank(count: int = 10) -> ImageBank:
    return ImageBank(tiny_images(count), tiny_labels(count))


def make_loop(path=None, fingerprint="print", images=None, **overrides) -> Loop:
    return tiny_training(
        tiny_recipe(**overrides), images or bank(), path=path, fingerprint=fingerprint
    )
