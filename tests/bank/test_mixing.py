"""Mixed batches: the formula, the draws, parts of a batch, and batches of every kind."""

import pytest
import torch

from synq_fast.bank.batches import BatchSource, Filter
from synq_fast.bank.images import ImageBank
from synq_fast.bank.mixing import MixedBatches
from tests.tiny import tiny_images, tiny_labels

SIZE = 6


def source() -> BatchSource:
    return BatchSource(
        ImageBank(tiny_images(10), tiny_labels(10)), SIZE, (0.5, 1.0), Filter(cutoff=3.0), 3
    )


def mixed(alpha: float = 1.0, seed: int = 3, part: slice = slice(None)) -> MixedBatches:
    return MixedBatches(source(), SIZE, alpha, seed, part)


def test_each_image_is_mixed_with_the_next_one():
    batches = mixed(0.4)
    images, labels = batches(5)
    plain, marks = source()(5)
    shares = batches.shares(5).double()
    expected = torch.stack(
        [
            shares[i] * plain[i].double() + (1 - shares[i]) * plain[(i + 1) % SIZE].double()
            for i in range(SIZE)
        ]
    )
    torch.testing.assert_close(images.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(labels, marks)


def test_shares_depend_on_seed_and_step_alone():
    batches = mixed()
    late = [batches(step) for step in (0, 1, 2)][2]
    torch.manual_seed(9)
    assert torch.equal(mixed()(2)[0], late[0])
    for other in (mixed(seed=4).shares(2), mixed(2.0).shares(2), mixed().shares(1)):
        assert not torch.equal(other, batches.shares(2))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_have_the_moments_of_the_distribution(alpha):
    shares = MixedBatches(source(), 4000, alpha, 0).shares(0).double()
    assert shares.min() >= 0 and shares.max() <= 1
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_any_parts_are_those_of_the_whole_batch():
    whole, labels = mixed()(4)
    for parts in ([slice(0, 3), slice(3, 6)], [slice(0, 1), slice(1, 3), slice(3, 6)]):
        rows = [mixed(part=part)(4) for part in parts]
        assert torch.equal(torch.cat([images for images, _ in rows]), whole)
        assert torch.equal(torch.cat([marks for _, marks in rows]), labels)


class Online:
    """Stands for batches that are made as they are asked for."""

    names = ("generator_class",)

    def __init__(self) -> None:
        self.step, self.closed = torch.tensor(0), False

    def inputs(self, step):
        return tiny_images(SIZE, step), tiny_labels(SIZE, step)

    def made(self, images, labels):
        self.step = self.step + 1
        return images, labels, torch.tensor([2.5])

    def state(self):
        return {"step": self.step}

    def restore(self, tensors):
        self.step = tensors["step"]

    def close(self):
        self.closed = True


def test_batches_keep_their_terms_their_state_and_their_end():
    batches = MixedBatches(Online(), SIZE, 1.0, 0, slice(2, 4))
    images, _, terms = batches.made(*batches.inputs(7))
    assert len(images) == 2 and terms.tolist() == [2.5]
    assert batches.names == ("generator_class",) and batches.state() == {"step": torch.tensor(1)}
    again = MixedBatches(Online(), SIZE, 1.0, 0)
    again.restore(batches.state())
    assert again.whole.step == 1
    batches.close()
    assert batches.whole.closed


def test_the_memory_format_stays():
    batches = MixedBatches(Online(), SIZE, 1.0, 0)
    images, labels, shares = batches.inputs(0)
    images = images.contiguous(memory_format=torch.channels_last)
    made = batches.made(images, labels, shares)[0]
    assert made.is_contiguous(memory_format=torch.channels_last)
