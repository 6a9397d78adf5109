import pytest
import torch
from torch import nn
from torch.nn import functional

from synq_fast.graph.swing import swung
from synq_fast.quant import trace
from tests.tiny import tiny_images


def strided() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten()
    ).eval()


def test_strided_convolutions_read_shifted_images():
    net, images = strided(), tiny_images(3)
    copy, swings = swung(trace(net, images))
    assert len(swings) == 1
    torch.testing.assert_close(copy(images), net(images))
    padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")
    for row, column in [(0, 2), (1, 0), (2, 2)]:
        swings[0].offset.copy_(torch.tensor([row, column]))
        moved = padded[:, :, row : row + images.shape[2], column : column + images.shape[3]]
        torch.testing.assert_close(copy(images), net(moved))


def test_offsets_are_drawn_from_the_generator():
    _, (swing,) = swung(trace(strided(), tiny_images(2)))
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(100):
        swing.draw(generator)
        seen.add(tuple(swing.offset.tolist()))
    assert seen == {(a, b) for a in range(3) for b in range(3)}


@pytest.mark.parametrize("images", [torch.randn(2, 2, 1, 1), torch.randn(2, 2, 1, 5)])
def test_one_pixel_has_no_neighbour_to_swing_to(images):
    net = nn.Sequential(nn.Conv2d(2, 4, 1, stride=2), nn.Flatten()).eval()
    copy, swings = swung(trace(net, images))
    assert not swings
    torch.testing.assert_close(copy(images), net(images))
