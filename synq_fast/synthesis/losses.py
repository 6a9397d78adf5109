"""What makes an image look like the teacher's training data: BN statistics and class losses."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from synq_fast import ops
from synq_fast.errors import ModelError
from synq_fast.quant import Structure, Tapped, simplified

Targets = list[tuple[Tensor, Tensor]]
"""Mean and variance (C,) per BatchNorm layer."""


class BatchNormTeacher:
    """The teacher as synthesis sees it: logits, and how far each BatchNorm input is off.

    Layer n contributes ``w_n * (MSE(mean) + MSE(variance))`` of its input against the running
    statistics, averaged over the layers (ZeroQ, arXiv 2001.00281, eq. 2).
    """

    def __init__(self, graph_module: fx.GraphModule, points: Structure) -> None:
        """Tap the input of every BatchNorm2d.

        Raises:
            ModelError: the model has none, so it holds no statistics to match.
        """
        nodes = {node.name: node for node in graph_module.graph.nodes}
        calls = [nodes[name] for name in points.norms]
        norms = [graph_module.get_submodule(str(call.target)) for call in calls]
        self.running: Targets = [
            (norm.running_mean, norm.running_var)
            for norm in norms
            if isinstance(norm, nn.BatchNorm2d)
            and norm.running_mean is not None
            and norm.running_var is not None
        ]
        if not norms or len(self.running) != len(norms):
            raise ModelError(
                "the recipe synthesizes images from BatchNorm statistics, but this model has "
                "no BatchNorm2d with running statistics; use a model trained with BatchNorm and "
                "not folded into its convolutions"
            )
        inputs = [call.all_input_nodes[0].name for call in calls]
        self.tapped = Tapped(simplified(graph_module, inputs), inputs)

    def __call__(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (B, classes) and the BatchNorm inputs, one (B, C, H, W) per layer."""
        view = self.tapped(images)
        return view.logits, view.features

    def statistics_loss(
        self,
        inputs: tuple[Tensor, ...],
        targets: Targets | None = None,
        weights: tuple[float, ...] | None = None,
    ) -> Tensor:
        """Mean over layers of the weighted mean and variance losses, a scalar.

        Args:
            inputs: BatchNorm inputs, as this object's call returns them.
            targets: other statistics than the running ones, per layer (mean, variance).
            weights: one factor per layer; a layer of weight 0 is skipped.
        """
        means, variances = zip(*(targets or self.running), strict=True)
        return ops.bn_statistics_losses(inputs, means, variances, weights)


def focal_class_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Mean of ``(1 - p)^gamma * cross entropy`` (HAST's hard-sample loss), a scalar.

    ``1 - p`` comes from ``-expm1(log p)`` and stays above 1e-8: for gamma < 1 the power has an
    infinite slope at ``p == 1``, which times a cross entropy of 0 is NaN.

    Args:
        logits: (B, classes).
        labels: (B,) int64.
        gamma: focus on what the teacher finds hard; 0 is plain cross entropy.

    Raises:
        ModelError: there is only one class, of which every image would be.
    """
    if logits.shape[1] < 2:
        raise ModelError(
            f"the teacher gives {logits.shape[1]} logit per image, so its class loss would always "
            "be zero; wrap a binary model so that it gives the two logits [0, z]"
        )
    log_p = torch.log_softmax(logits.float(), 1).gather(1, labels[:, None]).squeeze(1)
    difficulty = (-torch.expm1(log_p)).clamp_min(1e-8)
    return (difficulty**gamma * -log_p).mean()


def layer_switch(layers: int) -> int:
    """The first deep layer of TexQ's depth rule: ``floor((N + 2) / 2) - 2``, at least 0."""
    return max(0, (layers + 2) // 2 - 2)


def layered_weights(layers: int, shallow: float, deep: float) -> tuple[float, ...]:
    """Loss weights of ``layers`` BatchNorms: ``shallow`` before the switch, ``deep`` after."""
    switch = layer_switch(layers)
    return (shallow,) * switch + (deep,) * (layers - switch)
