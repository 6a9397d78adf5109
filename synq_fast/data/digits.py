"""The embedded handwritten digits.

The images are the 8x8 digits that scikit-learn ships: the test part of "Optical Recognition of
Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998,
doi:10.24432/C50P49, CC BY 4.0). The package holds 360 of the 1797, which the embedded teacher has
never seen; `tools/train_digits.py` writes them.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

DIGITS_FILE = Path(__file__).with_name("digits_test_360.npz")


def enlarge_digits(images: np.ndarray) -> np.ndarray:
    """Enlarge digits (N, 8, 8) of 0..16 to (N, 1, 16, 16) float32 on a 0..1 scale, bilinearly."""
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32))[:, None] / 16
    return F.interpolate(pixels, scale_factor=2, mode="bilinear", align_corners=False).numpy()


def digits_test() -> tuple[np.ndarray, np.ndarray]:
    """Return the 360 embedded images (360, 1, 16, 16) float32 on a 0..1 scale and labels (360,)."""
    with np.load(DIGITS_FILE, allow_pickle=False) as arrays:
        return enlarge_digits(arrays["images"]), arrays["labels"]
