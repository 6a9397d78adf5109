"""Half-spectrum masks of the low-pass filters, built once per setting."""

import threading
from collections import OrderedDict

import torch

_CACHE_SIZE = 32
_cache: OrderedDict[tuple[object, ...], torch.Tensor] = OrderedDict()
_lock = threading.Lock()


def build_mask(
    height: int,
    width: int,
    cutoff: float,
    kind: str,
    order: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Returns the float64 gains `(height, width // 2 + 1)` on the half spectrum of `rfft2`.

    With the zero frequency shifted to `floor(n / 2)`, the offset of frequency k from the centre is
    `fftfreq(n) * n`, for odd and even n alike; the filters depend on its square only.
    """
    rows = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64, device=device)
    columns = torch.fft.rfftfreq(width, 1 / width, dtype=torch.float64, device=device)
    squared: torch.Tensor = rows.round()[:, None].square() + columns.round().square()
    if kind == "gaussian":
        return torch.exp(-squared / (2 * cutoff**2))
    if kind == "butterworth":
        return (1 + (squared / cutoff**2).pow(order)).reciprocal()
    return (squared <= cutoff**2).double()


def cached_mask(
    height: int,
    width: int,
    cutoff: float,
    kind: str,
    order: int,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Returns the mask of `build_mask` in `dtype` on `device`, from a bounded LRU cache.

    A CUDA graph under capture gets a mask of its own, built when the graph runs.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return build_mask(height, width, cutoff, kind, order, device).to(dtype)
    key = (height, width, cutoff, kind, order, dtype, device)
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    with torch.inference_mode(False):
        mask = build_mask(height, width, cutoff, kind, order).to(device=device, dtype=dtype)
    with _lock:
        _cache[key] = mask
        while len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
    return mask
