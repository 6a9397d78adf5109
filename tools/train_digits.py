"""Train the embedded teacher: ``python tools/train_digits.py``.

Writes its weights to `synq_fast/models` and the test images to `synq_fast/data`. It needs
scikit-learn, which brings the digits (`synq_fast.data.digits` names source and licence).

The 1797 images are split once, stratified by class, into 1437 for training and 360 for testing.
Hyper-parameters are judged with ``--validate``, which trains on four fifths of the training part
and measures on the rest; the test part is used once, for the accuracy that is printed.

Two runs on one machine give the same weights bit for bit: the seed and the number of threads (two)
are fixed and only deterministic algorithms are used. Another machine may round differently.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from synq_fast import models
from synq_fast.data.digits import DIGITS_FILE, enlarge_digits
from synq_fast.models.registry import DIGITS_MEAN, DIGITS_STD
from synq_fast.models.resnet_cifar import digits_resnet20

WEIGHTS_FILE = Path(models.__file__).with_name("digits_resnet20.safetensors")

SEED = 0
THREADS = 2
TEST_IMAGES = 360
EPOCHS = 40
BATCH = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
ROTATION_DEGREES = 10.0
SHIFT_PIXELS = 1.5
SCALE = 0.1

Part = tuple[np.ndarray, np.ndarray]


def split(images: np.ndarray, labels: np.ndarray, second: int) -> tuple[Part, Part]:
    """Split images and labels by class into two parts, the second of `second` images."""
    from sklearn.model_selection import train_test_split

    parts = train_test_split(images, labels, test_size=second, stratify=labels, random_state=SEED)
    return (parts[0], parts[2]), (parts[1], parts[3])


def load_split() -> tuple[Part, Part]:
    """Return training and test part: images (N, 8, 8) of 0..16 and labels (N,), both uint8."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return split(digits.images.astype(np.uint8), digits.target.astype(np.uint8), TEST_IMAGES)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift each image (B, 1, H, W) by its own small random amount."""
    count, size = len(images), images.shape[-1]
    draws = torch.rand(count, 4, generator=generator) * 2 - 1
    angle = draws[:, 0] * math.radians(ROTATION_DEGREES)
    zoom = 1 + draws[:, 1] * SCALE
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    shift = draws[:, 2:] * (2 * SHIFT_PIXELS / size)
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def prepare(images: np.ndarray) -> Tensor:
    """Turn digits (N, 8, 8) into images (N, 1, 16, 16) on a 0..1 scale."""
    return torch.from_numpy(enlarge_digits(images))


def normalize(images: Tensor) -> Tensor:
    """Turn images on a 0..1 scale into the network's input."""
    return (images - DIGITS_MEAN[0]) / DIGITS_STD[0]


def train(part: Part, epochs: int = EPOCHS) -> nn.Module:
    """Train on images (N, 8, 8) and labels (N,) and return the network in eval mode."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    images, labels = prepare(part[0]), torch.from_numpy(part[1]).long()
    network = digits_resnet20().train()
    optimizer = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    steps = epochs * (len(images) // BATCH)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15, cycle_momentum=False
    )
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        # The last, incomplete batch is dropped: its BatchNorm statistics would be noisy.
        for chosen in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
            inputs = normalize(augment(images[chosen], generator))
            loss = F.cross_entropy(network(inputs), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            scheduler.step()
        if (epoch + 1) % 5 == 0:
            print(f"epoch {epoch + 1}/{epochs}: loss {loss.item():.4f}", flush=True)
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, part: Part) -> float:
    """Return the percentage of images (N, 8, 8) that are classified as labelled."""
    predicted = network(normalize(prepare(part[0]))).argmax(1).numpy()
    return 100.0 * float((predicted == part[1]).mean())


def main(arguments: list[str] | None = None) -> None:
    """Train and write weights and test images, or measure on a validation part."""
    parser = argparse.ArgumentParser(
        prog="python tools/train_digits.py",
        description="Train the embedded digits teacher.",
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument(
        "--validate",
        action="store_true",
        help="hold a fifth of the training part out, print the accuracy on it and write nothing",
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS_FILE, help="file to write")
    parser.add_argument("--images", type=Path, default=DIGITS_FILE, help="file to write")
    options = parser.parse_args(arguments)

    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    training, test = load_split()
    if options.validate:
        training, validation = split(*training, len(training[0]) // 5)
        network = train(training, options.epochs)
        print(f"validation accuracy: {accuracy(network, validation):.2f} %")
        return
    network = train(training, options.epochs)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, options.weights)
    np.savez_compressed(options.images, images=test[0], labels=test[1])
    print(f"test accuracy: {accuracy(network, test):.2f} %, written: {options.weights}")


if __name__ == "__main__":
    main()
