"""Inputs of the class activation maps."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import OpCase, Sample, Tolerance, nbytes, noise, uniform

# Maps lie in [0, 1]; the sum over up to 512 channels, then the stretch.
MAP = Tolerance(atol=5e-6)
GRADIENT = Tolerance(of_largest=4e-5, of_norm=1e-4, atol=5e-9)
SHAPES = {
    ((1, 2, 1, 4), (1, 8)): "one row",
    ((2, 3, 2, 3), (2, 3)): "no resizing",
    ((2, 9, 3, 3), (9, 7)): "fewer positions than a vector, one channel beyond a group",
    ((3, 5, 4, 4), (8, 16)): "positions that fill a vector, whole vectors of pixels",
    ((1, 17, 7, 7), (30, 33)): "odd everywhere",
    ((2, 8, 6, 9), (4, 5)): "smaller than the coarse map",
    ((2, 4, 5, 1), (7, 3)): "one column",
}
LARGE = {
    ((3, 70, 7, 7), (224, 224)): "ResNet, many vectors",
    ((2, 530, 8, 8), (32, 32)): "channels beyond a block",
    ((2, 3, 24, 25), (50, 40)): "positions beyond a block",
    ((1, 6, 3, 2), (2, 700)): "rows longer than a block",
    ((5, 40, 14, 14), (60, 61)): "more images than threads",
}
TILED = {
    ((1, 260, 8, 8), (20, 24)): "1024 threads, several packs of channels a warp",
    ((1, 132, 9, 10), (18, 20)): "several shares of many positions, channels in packs",
    ((1, 12, 9, 10), (7, 9)): "the same in one share",
    ((2, 3, 17, 16), (36, 17)): "more positions than a warp takes at once, rows beyond a tile",
    ((1, 4, 2, 3), (3, 521)): "pixel columns beyond a tile",
    ((1, 40, 2, 23), (3, 140)): "tiles of channels, of coarse and of pixel columns",
    ((1, 2, 2, 40), (4, 9)): "fewer pixels than coarse columns",
}
# Values and sizes for which interpolation is exact in float32, so that ties are ties everywhere.
TIES = {
    "two corners": ([[4, 1, 2], [1, 2, 1], [2, 1, 4]], (6, 6)),
    "a corner, an edge and the middle": ([[4, 1, 1, 1], [1, 1, 4, 1], [4, 1, 1, 2]], (12, 16)),
    "a plateau and a valley": ([[4, 4, 1, 1], [4, 4, 1, 1], [2, 3, 2, 1]], (6, 8)),
    "no resizing": ([[3, 1, 3], [1, 2, 3]], (2, 3)),
    "zeros below": ([[0, 0, 4], [0, 4, 1], [-2, -1, 0]], (6, 6)),
    "every other pixel": ([[1, 2, 1, 2], [2, 1, 2, 1]], (1, 2)),
}


def cut_tokens(x: torch.Tensor) -> torch.Tensor:
    """Returns images as tokens behind a class token that has been cut off, a view with gaps."""
    tokens = x.flatten(2).transpose(1, 2)
    return torch.cat([torch.full_like(tokens[:, :1], float("nan")), tokens], 1)[:, 1:]


def signs(g: torch.Tensor) -> torch.Tensor:
    """Returns gradients whose channels speak for and against the class in turn, and all count."""
    g = g.abs()
    g[:, 1::2] *= -0.1
    return g


def kinds(*, score: bool = False, target: bool = False, clamped: bool = True) -> Iterator[Sample]:
    """Yields the samples of one op of the family: maps by a score, or compared with a target."""

    def sample(
        reason: str, a: torch.Tensor, g: torch.Tensor, size: tuple[int, int], **fields: Any
    ) -> Sample:
        third: tuple[torch.Tensor, ...] = ()
        if score:
            third = (noise(a.shape[0], seed=7),)
        elif target:
            third = (uniform(a.shape[0], 1, *size, seed=7),)
        options = dict(fields.pop("options", {})) | ({} if target else {"size": size})
        return Sample(reason, (a, g, *third), options, **fields)

    def gradients(*shape: int, mean: float = 0.7) -> torch.Tensor:
        # Grad-CAM++ divides by their sums.
        g = noise(*shape, seed=1, mean=mean)
        return g.abs() + 0.05 if score else g

    images = uniform(2, 3, 4, 4, low=0.2, high=1.2), gradients(2, 3, 4, 4)
    yield sample("typical", images[0], images[1], (8, 8) if target else (7, 8))
    for shapes, large in ((SHAPES, False), (LARGE, True)):
        for (shape, size), reason in shapes.items():
            # Sums of many channels that all count for the class are nearly flat maps.
            mean = 0.0 if large else 0.7
            a, g = uniform(*shape, low=0.2, high=1.2), gradients(*shape, mean=mean)
            yield sample(reason, a, g, size, every_layout=True, large=large)
            grid = {"grid": shape[2:]}
            tokens = cut_tokens(a), cut_tokens(g)
            yield sample(f"tokens: {reason}", tokens[0], tokens[1], size, options=grid, large=large)
            last = g.to(memory_format=torch.channels_last)
            yield sample(f"of two layouts: {reason}", a, last, size, large=large)
            if clamped:
                options = {"clamp": None}
                yield sample(f"no clamp: {reason}", a, signs(g), size, options=options,
                             every_layout=not large, large=large)  # fmt: skip
    for (shape, size), reason in TILED.items():
        a, g = uniform(*shape, low=0.2, high=1.2), gradients(*shape, mean=0.0)
        yield sample(reason, a, g, size, every_layout=True)
    if not score:
        # The weights of Grad-CAM++ are not exact, so sums with them are no exact ties.
        for reason, (values, size) in TIES.items():
            image = torch.tensor(values, dtype=torch.float32, device="cpu")
            a = torch.stack([image, image.flip(0)])[:, None]
            yield sample(f"ties: {reason}", a, torch.ones_like(a), size)
    flat = torch.full_like(noise(2, 3, 7, 7), 0.3)
    yield sample("flat", flat, torch.ones_like(flat) * 0.37, (16, 15))
    if not score:
        # Negative activations can make the weights of Grad-CAM++ negative, and the map positive.
        a = uniform(2, 3, 4, 4, low=-1.1, high=-0.1)
        yield sample("no evidence", a, torch.ones_like(a), (8, 8))
    yield sample("no image", noise(0, 3, 4, 4), noise(0, 3, 4, 4), (5, 4))
    for value in (float("nan"), float("inf")):
        for index, shape in enumerate(((2, 3, 4, 4), (2, 19, 7, 7))):
            for where in (0, 1) if value != value else ():
                tensors = [uniform(*shape, low=0.1), uniform(*shape, seed=1, low=0.1)]
                tensors[where].view(2, -1)[1, -1] = value
                for memory_format in (torch.contiguous_format, torch.channels_last):
                    pair = [x.to(memory_format=memory_format) for x in tensors]
                    yield sample(f"{value} fills the map of its image", pair[0],
                        pair[1], (8, 9),
                                 special=True, large=bool(index))  # fmt: skip


def units(sample: Sample) -> tuple[Any, ...]:
    """More channels than the tolerance is for, and the pixels that a gradient sums."""
    channels = sample.tensors[0].shape[1 if "grid" not in sample.options else 2]
    height, width = sample.options.get("size", (1, 1))
    return max(1.0, channels / 256), height * width


def call_of(name: str) -> Any:
    """Returns how a map without a score is called."""

    def call(
        namespace: Any,
        activations: torch.Tensor,
        gradients: torch.Tensor,
        *,
        size: tuple[int, int],
        **options: Any,
    ) -> Any:
        return getattr(namespace, name)(activations, gradients, size, **options)

    return call


def map_case(name: str, call: Any, samples: Any, **fields: Any) -> OpCase:
    """Returns the case of a map, whose weights are constants to autograd."""
    return OpCase(
        name=name,
        call=call,
        inputs=samples,
        **{
            "values": (MAP,),
            "gradients": (GRADIENT,),
            "units": units,
            "bytes_moved": lambda sample: 2 * nbytes(sample.tensors[0]),
            "cast": (0, 1),
            "laid_out": (0, 1),
            # The coarse map and the weights of the channels.
            "saves": 2 * 16 + 2 * 3,
            **fields,
        },
    )


def upsampled(activations: torch.Tensor, *_: torch.Tensor) -> Any:
    """ATen's interpolation of every channel."""
    resize = torch.nn.functional.interpolate
    return lambda: resize(activations, (32, 32), mode="bilinear")
