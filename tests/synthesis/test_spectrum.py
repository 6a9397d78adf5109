"""Images by their Fourier coefficients."""

import math

import pytest
import torch
from sklearn.datasets import load_sample_images

from synq_fast.runtime.seeding import normal_images
from synq_fast.synthesis.parametrization import Pixels
from synq_fast.synthesis.settings import Synthesis
from synq_fast.synthesis.spectrum import SpectrumImages, envelope
from tests.tiny import SHAPE, tiny_synthesizer

RECIPE = Synthesis(
    batch_size=6, steps=30, parametrization="spectrum", learning_rate=0.1, augment_probability=0.5
)
SIZES = [(1, 1), (1, 6), (5, 4), (4, 7), (32, 32), (9, 33)]


def white(size, count=3):
    return normal_images(count, (2, *size), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_envelope_is_one_over_the_frequency_and_keeps_the_variance(size):
    height, width = size
    falling = envelope(*size)
    assert falling.shape == (height, width // 2 + 1) and falling.dtype == torch.float32
    lowest = 1 / max(size)
    unscaled = [
        [1 / max(math.hypot(min(y, height - y) / height, min(x, width - x) / width), lowest)
         for x in range(width)]
        for y in range(height)
    ]  # fmt: skip
    whole = torch.tensor(unscaled, dtype=torch.float64)
    whole /= whole.square().mean().sqrt()
    torch.testing.assert_close(falling.double(), whole[:, : width // 2 + 1], rtol=1e-6, atol=0)


def test_a_photograph_is_white_without_the_envelope():
    """Its amplitudes fall by a factor of 50; what is left of it is within a factor of 4."""
    photograph = torch.from_numpy(load_sample_images().images[0].copy())[:416, :416]
    grey = photograph.double().mean(-1)
    # Without a window, the edges of the picture would be frequencies of their own.
    window = torch.hann_window(416, periodic=False, dtype=torch.float64)
    spectrum = torch.fft.rfft2((grey - grey.mean()) * window * window[:, None], norm="ortho").abs()
    flat = spectrum / envelope(416, 416)
    rows, columns = torch.fft.fftfreq(416)[:, None], torch.fft.rfftfreq(416)
    frequency = torch.hypot(rows, columns)
    bands = [(frequency >= low) & (frequency < 2 * low) for low in (0.01, 0.02, 0.04, 0.08, 0.16)]

    def fall(amplitudes):
        levels = [amplitudes[band].square().mean().sqrt().item() for band in bands]
        return max(levels) / min(levels)

    assert fall(flat) < 4 < 10 < fall(spectrum)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_images_begin_under_the_envelope_and_go_on_from_images(size):
    labels = torch.arange(3)
    begun, found = SpectrumImages(white(size), labels).images()
    shaped = torch.fft.rfft2(white(size).double()) * envelope(*size)
    wanted = torch.fft.irfft2(shaped, s=size)
    torch.testing.assert_close(begun.double(), wanted, rtol=0, atol=1e-5)
    assert torch.equal(found, labels) and begun.requires_grad
    assert begun.is_contiguous(memory_format=torch.channels_last)
    again, _ = SpectrumImages(begun.detach(), labels, white=False).images()
    torch.testing.assert_close(again, begun, rtol=0, atol=1e-5)


def test_an_update_moves_every_frequency_as_far_beside_its_usual_size():
    """One of pixels adds white noise, most of it where images have next to nothing."""
    labels, size = torch.arange(3), (32, 32)
    target = 3 * white(size)

    def moved(parametrization):
        optimizer = torch.optim.Adam(parametrization.parameter_groups(), 0.1)
        before = parametrization.images()[0].detach().clone()
        (parametrization.images()[0] - target).square().sum().backward()
        optimizer.step()
        step = parametrization.images()[0].detach() - before
        return torch.fft.rfft2(step, norm="ortho").abs() / envelope(*size)

    high = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)) > 0.35
    low = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)) < 0.1
    ratios = [
        (step[..., high].square().mean() / step[..., low].square().mean()).sqrt().item()
        for step in (moved(SpectrumImages(white(size), labels)), moved(Pixels(target / 3, labels)))
    ]
    assert ratios[0] == pytest.approx(1.0, abs=0.15)
    assert ratios[1] > 4


def test_coefficients_are_optimized_and_depend_on_the_seed_alone():
    seen = []
    maker = tiny_synthesizer(RECIPE)
    images, labels = maker.batch(0, 5, lambda r: seen.append(r))
    assert images.shape == (5, *SHAPE) and len(labels) == 5 and not images.requires_grad
    assert seen[-1]["statistics"] < 0.8 * seen[0]["statistics"]
    assert torch.equal(images, tiny_synthesizer(RECIPE).batch(0, 5)[0])
    assert not torch.equal(images, tiny_synthesizer(RECIPE, seed=1).batch(0, 5)[0])


def test_a_state_is_put_back():
    loop, parametrization = tiny_synthesizer(RECIPE).optimization(0, 5)
    for _ in range(4):
        loop.advance()
    state = {name: value.clone() for name, value in loop.iteration.state().items()}
    kept = parametrization.images()[0].detach().clone()
    for _ in range(4):
        loop.advance()
    assert not torch.equal(parametrization.images()[0], kept)
    loop.iteration.restore(state)
    assert torch.equal(parametrization.images()[0], kept)
