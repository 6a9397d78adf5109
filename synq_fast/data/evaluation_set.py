"""Labelled images, normalised batch by batch on the device that wants them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from synq_fast.errors import DataError
from synq_fast.models.teacher import Teacher


class EvaluationSet(Dataset[tuple[Tensor, Tensor]], ABC):
    """Images and labels for one teacher.

    `set[i]` is (image (C, H, W) float32, label ()), normalised for the teacher; `batches` is the
    faster way through all of it.

    Args:
        name: shown to the user.
        labels: one integer per image, checked against the teacher's classes.
        teacher: gives input shape, normalisation and number of classes.

    Raises:
        DataError: there are no images, or labels are not integers of the teacher's classes.
    """

    def __init__(self, name: str, labels: Any, teacher: Teacher) -> None:
        self.name = name
        self.labels = _checked_labels(name, labels, teacher.num_classes)
        self._teacher = teacher

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return image and label at `index`; negative indices count from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        index %= len(self)
        return self._teacher.normalize(self.pixels([index]))[0], self.labels[index]

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        workers: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (B, C, H, W) float32, labels (B,) int64), in order.

        Args:
            batch_size: images in each but the last.
            device: where the images are normalised and given; labels stay on the CPU.
            workers: processes that decode image files ahead; 0 decodes here, None chooses by the
                machine. Arrays need none.
        """
        device = torch.device(device)
        normalize = self._teacher.normalizer(device)
        stored = self.stored(batch_size, workers=workers, pinned=device.type == "cuda")
        for images, labels in zip(stored, self.labels.split(batch_size), strict=True):
            yield normalize(_unit_scale(images.to(device, non_blocking=True))), labels

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """Return images (B, C, H, W) float32 on a 0..1 scale."""
        return _unit_scale(self.stored_at(indices))

    @abstractmethod
    def stored_at(self, indices: Sequence[int]) -> Tensor:
        """Return images (B, C, H, W) as they are stored: uint8, or floats on a 0..1 scale."""

    @abstractmethod
    def stored(self, batch_size: int, *, workers: int | None, pinned: bool) -> Iterator[Tensor]:
        """Yield all images as they are stored, batch by batch, in pinned memory if asked."""


class ArraySet(EvaluationSet):
    """Images in memory.

    Args:
        name: shown to the user.
        images: (N, H, W, C) or (N, C, H, W), or (N, H, W) for one channel; uint8, or floating point
            on a 0..1 scale. Where both readings fit the teacher, channels are taken to be last.
        labels: (N,) integers.
        teacher: gives input shape, normalisation and number of classes.

    Raises:
        DataError: shape, type or values do not fit the teacher; the message says which.
    """

    def __init__(self, name: str, images: Any, labels: Any, teacher: Teacher) -> None:
        super().__init__(name, labels, teacher)
        array = _as_array(name, images)
        _check_values(name, array)
        if array.ndim == 0 or len(array) != len(self.labels):
            count = len(array) if array.ndim else "no"
            raise DataError(f"{name}: {count} images but {len(self.labels)} labels")
        array = _channels_first(name, array, teacher.input_shape)
        # PyTorch knows neither other byte orders nor floats of more than 64 bits.
        native = np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
        self._images = torch.from_numpy(array.astype(native, copy=False))

    def stored_at(self, indices: Sequence[int]) -> Tensor:
        """Return images (B, C, H, W) as they are stored: uint8, or floats on a 0..1 scale."""
        return self._images[torch.as_tensor(indices, device="cpu")]

    def stored(self, batch_size: int, *, workers: int | None, pinned: bool) -> Iterator[Tensor]:
        """Yield all images as they are stored, batch by batch, in pinned memory if asked."""
        for images in self._images.split(batch_size):
            yield images.pin_memory() if pinned else images


def _unit_scale(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _checked_labels(name: str, labels: Any, num_classes: int) -> Tensor:
    array = _as_array(name, labels)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(
            f"{name}: labels must be one integer per image, got {array.dtype} of shape "
            f"{array.shape}"
        )
    if array.size == 0:
        raise DataError(f"{name} is empty: it holds no labelled image")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"{name}: labels range from {low} to {high}, but the model has the classes 0 to "
            f"{num_classes - 1}; is this the right dataset for the model?"
        )
    return torch.from_numpy(array.astype(np.int64))


def _as_array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU
        raise DataError(f"{name}: images and labels must be arrays: {error}") from error


def _check_values(name: str, images: np.ndarray) -> None:
    if images.dtype == np.uint8 or images.size == 0:
        return
    if images.dtype.kind != "f":
        raise DataError(
            f"{name}: images of type {images.dtype} are not supported, expected uint8 (0..255) or "
            "floating point on a 0..1 scale: divide them by what stands for white"
        )
    if np.isnan(images).any():
        bad = int(np.isnan(images).reshape(len(images), -1).any(1).sum())
        raise DataError(f"{name}: NaN images: {bad} of {len(images)} hold NaN values")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise DataError(
            f"{name}: floating-point images must be on a 0..1 scale and not normalised, "
            f"got values from {low:.4g} to {high:.4g}"
        )


def _channels_first(name: str, images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    if images.shape[1:] == (height, width, channels):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.shape[1:] == shape:
        return np.ascontiguousarray(images)
    if channels == 1 and images.shape[1:] == (height, width):
        return np.ascontiguousarray(images[:, None])
    raise DataError(
        f"{name}: images have the shape {images.shape}, but the model takes "
        f"(N, {height}, {width}, {channels}) or (N, {channels}, {height}, {width})"
    )
