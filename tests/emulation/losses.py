"""The losses and the channels' moments on emulated CUDA kernels."""

import ctypes
import itertools
from typing import Any

import torch

from synq_fast import reference
from tests.emulation.launching import (
    BOOL,
    DOUBLE,
    DTYPES,
    FLOAT,
    INT,
    LONG,
    POINTER,
    Launcher,
    arrange,
    differentiable,
    fields,
)


class BnLayer(ctypes.Structure):
    """BnLayer of csrc/bn_statistics_loss.h."""

    _fields_ = fields(
        (LONG, "outer channels inner"),
        (POINTER, "x running_mean running_var statistics"),
        (DOUBLE, "weight"),
        (INT, "dtype"),
    )


class BnParams(ctypes.Structure):
    """BnStatisticsParams of csrc/bn_statistics_loss.h."""

    _fields_ = fields(
        (POINTER, "layers"),
        (LONG, "count row_stride"),
        (POINTER, "mean_loss var_loss loss workspace"),
    )


class BnLayerGradient(ctypes.Structure):
    """BnLayerGradient of csrc/bn_statistics_loss.h."""

    _fields_ = fields(
        (LONG, "outer channels inner"),
        (POINTER, "x result statistics"),
        (DOUBLE, "weight"),
        (INT, "dtype"),
    )


class BnGradientParams(ctypes.Structure):
    """BnGradientParams of csrc/bn_statistics_loss.h."""

    _fields_ = fields(
        (POINTER, "layers"),
        (LONG, "count row_stride"),
        (POINTER, "mean_scale var_scale"),
    )


class MomentsParams(ctypes.Structure):
    """ChannelMomentsParams of csrc/channel_moments.h."""

    _fields_ = fields(
        (LONG, "samples channels positions"),
        (BOOL, "innermost"),
        (POINTER, "x mean variance workspace of_mean of_variance y"),
        (INT, "dtype"),
    )


class DistillationParams(ctypes.Structure):
    """DistillationLossParams of csrc/distillation_loss.h."""

    _fields_ = fields(
        (POINTER, "student teacher labels kl ce difficulty"),
        (POINTER, "kl_gradient ce_gradient teacher_gradient row_losses"),
        (LONG, "batch classes"),
        (FLOAT, "temperature alpha threshold"),
        (INT, "dtype"),
    )


class DistillationGradientParams(ctypes.Structure):
    """DistillationGradientParams of csrc/distillation_loss.h."""

    _fields_ = fields(
        (POINTER, "kl_scale ce_scale kl_gradient ce_gradient result"),
        (LONG, "elements"),
        (INT, "dtype"),
    )


class Statistics:
    """The losses on stored statistics by their names."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def _layers(self, inputs: Any, means: Any, variances: Any, weights: Any, loss: bool) -> Any:
        """Losses, apart or as one, and what the gradients of the layers are made from."""
        places = [arrange(x, 1) for x in inputs]
        memories = [self.launch.input(place.memory) for place in places]
        ends = list(itertools.accumulate(place.channels for place in places))
        # Rows longer than the layers' channels together.
        statistics = torch.full((3, ends[-1] + 2), float("nan"), dtype=torch.float64)
        shared = {"count": len(places), "row_stride": statistics.shape[1]}

        def described(kind: Any, **values: Any) -> Any:
            return (kind * len(places))(
                *(
                    kind(
                        **place.sizes, x=memory.data_ptr(), weight=weight,
                        statistics=statistics[:, end - place.channels :].data_ptr(),
                        dtype=DTYPES.index(memory.dtype),
                        **{name: tensors[i].data_ptr() for name, tensors in values.items()},
                    )
                    for i, (place, memory, weight, end) in enumerate(
                        zip(places, memories, weights, ends, strict=True)
                    )
                )
            )  # fmt: skip

        stored = {"running_mean": means, "running_var": variances}
        stored = {name: [x.detach() for x in tensors] for name, tensors in stored.items()}
        layers = described(BnLayer, **stored)
        results = torch.full((3,), float("nan"))
        wanted = {"loss": results[2]} if loss else {"mean_loss": results[0], "var_loss": results[1]}
        self.launch(
            "forward", BnParams, layers=ctypes.addressof(layers),
            workspace=("workspace", torch.float64), **wanted, **shared,
        )  # fmt: skip
        assert statistics[:, ends[-1] :].isnan().all(), "wrote beyond the layers' statistics"

        def gradients(of_mean: Any, of_var: Any) -> tuple[torch.Tensor, ...]:
            made = [self.launch.output(memory) for memory in memories]
            layers = described(BnLayerGradient, result=made)
            scales = [None if g is None else g.float().clone() for g in (of_mean, of_var)]
            self.launch(
                "backward", BnGradientParams, layers=ctypes.addressof(layers),
                mean_scale=scales[0], var_scale=scales[1], **shared,
            )  # fmt: skip
            return tuple(place.restored(x) for place, x in zip(places, made, strict=True))

        return results, gradients

    def bn_statistics_loss(self, x: Any, mean: Any, var: Any) -> Any:
        def forward(x: torch.Tensor) -> Any:
            losses, gradients = self._layers([x], [mean], [var], [1.0], False)
            return (losses[0].clone(), losses[1].clone()), gradients

        return differentiable(forward, lambda gradients, *of: gradients(*of), x)

    def bn_statistics_losses(self, inputs: Any, means: Any, variances: Any, weights=None) -> Any:
        weights = weights or [1.0] * len(inputs)
        read = [i for i, weight in enumerate(weights) if weight != 0]
        if not read:
            return torch.zeros(())

        def forward(*layers: torch.Tensor) -> Any:
            losses, gradients = self._layers(
                layers, [means[i] for i in read], [variances[i] for i in read],
                [weights[i] / len(inputs) for i in read], True,
            )  # fmt: skip
            return losses[2].clone(), gradients

        return differentiable(
            forward, lambda gradients, g: gradients(g, g), *(inputs[i] for i in read)
        )


class Moments:
    """The op by its name."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def channel_moments(self, x: Any) -> Any:
        innermost = x.ndim == 4 and x.stride(1) == 1 and x.shape[1] > 1
        order = [0, 2, 3, 1] if innermost else list(range(x.ndim))
        if not x.numel():
            return reference.channel_moments(x)
        place = arrange(x.contiguous() if not innermost else x, 1, order)
        memory = self.launch.input(place.memory)
        sizes = {
            "samples": x.shape[0], "channels": x.shape[1], "positions": x[0, 0].numel(),
            "dtype": DTYPES.index(x.dtype), "innermost": innermost,
        }  # fmt: skip
        workspace = {"workspace": ("moments_workspace", torch.float64)}

        def forward(x: torch.Tensor) -> Any:
            mean, variance = torch.full((2, *x.shape[:2]), float("nan"))
            results = {"mean": mean, "variance": variance}
            self.launch("moments", MomentsParams, x=memory, **results, **sizes, **workspace)
            return (mean, variance), mean

        def backward(mean: torch.Tensor, of_mean: Any, of_variance: Any) -> Any:
            if of_variance is None:
                spread = of_mean / sizes["positions"]
                spread = spread[(...,) + (None,) * (x.ndim - 2)].expand(x.shape)
                return (torch.empty_like(x.detach()).copy_(spread),)
            y = self.launch.output(memory)
            given = {"of_mean": of_mean, "of_variance": of_variance}
            given = {k: None if g is None else g.contiguous() for k, g in given.items()}
            self.launch(
                "moments_backward", MomentsParams, x=memory, y=y, mean=mean, **given, **sizes
            )
            like = torch.empty_like(x.detach())
            return (like.copy_(place.restored(y)),)

        return differentiable(forward, backward, x)


class Distillation:
    """The op by its name."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def distillation_loss(
        self, student: Any, teacher: Any, labels: Any,
        *, temperature=20.0, alpha=20.0, difficulty_threshold=0.5,
    ) -> Any:  # fmt: skip
        shape = student.shape
        if shape[0] == 0:
            return reference.distillation_loss(student, teacher, labels)

        def forward(student: torch.Tensor, teacher: torch.Tensor) -> Any:
            values, difficulty = torch.full((2,), float("nan")), torch.full(shape[:1], torch.nan)
            gradients = torch.full((3, *shape), float("nan"))
            self.launch(
                "forward", DistillationParams, student=self.launch.input(student),
                teacher=self.launch.input(teacher), labels=labels, kl=values[0], ce=values[1],
                difficulty=difficulty, kl_gradient=gradients[0], ce_gradient=gradients[1],
                teacher_gradient=gradients[2],
                row_losses=torch.full((2, shape[0]), float("nan"), dtype=torch.float64),
                batch=shape[0], classes=shape[1], temperature=temperature, alpha=alpha,
                threshold=difficulty_threshold, dtype=DTYPES.index(student.dtype),
            )  # fmt: skip
            return (values[0].clone(), values[1].clone(), difficulty), gradients

        def combined(g: Any, like: torch.Tensor, **pairs: Any) -> torch.Tensor:
            result = self.launch.output(torch.empty(shape, dtype=like.dtype))
            scales = {f"{k}_scale": None if v is None else v.clone() for k, v in pairs.items()}
            of = {f"{k}_gradient": g[k] for k, v in pairs.items() if v is not None}
            self.launch(
                "backward", DistillationGradientParams, result=result, **scales, **of,
                elements=result.numel(), dtype=DTYPES.index(like.dtype),
            )  # fmt: skip
            return torch.empty_like(like.detach()).copy_(result)

        def backward(kept: torch.Tensor, of_kl: Any, of_ce: Any, _: Any) -> Any:
            g = dict(zip(("kl", "ce"), kept, strict=False))
            of_student = combined(g, student, kl=of_kl, ce=of_ce)
            if of_kl is None:
                return of_student, None
            return of_student, combined({"kl": kept[2]}, teacher, kl=of_kl)

        return differentiable(forward, backward, student, teacher, constants=(2,))
