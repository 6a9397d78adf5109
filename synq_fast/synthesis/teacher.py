"""The teacher as synthesis sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from synq_fast.errors import ModelError, RecipeError
from synq_fast.graph.dropping import ChosenPatches, with_chosen_patches
from synq_fast.graph.nodes import TRACED_IMAGES, called_module, shape_of
from synq_fast.graph.patches import before_patches
from synq_fast.graph.swing import Swing, swung
from synq_fast.quant import Structure, Tapped, simplified
from synq_fast.synthesis.losses import Attended, ImageLoss, Seen, Targets


class ImageTeacher:
    """Shows, of a batch of images, everything that losses read."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        structure: Structure,
        *,
        swing: bool = False,
        sparse: bool = False,
    ) -> None:
        """Tap the input of every BatchNorm2d that holds statistics.

        Args:
            graph_module: the traced float model.
            structure: of it.
            swing: shift what strided convolutions read (Genie).
            sparse: be able to look at some patches of an image alone (SMI).

        Raises:
            RecipeError: ``sparse``, and the network cannot do without some of its patches.
        """
        name = type(graph_module).__name__
        self.swings: tuple[Swing, ...] = ()
        if swing:
            graph_module, self.swings = swung(graph_module)
        self._patches: ChosenPatches | None = None
        if sparse:
            try:
                graph_module, self._patches = with_chosen_patches(
                    graph_module, structure.attentions
                )
            except ModelError as error:
                raise RecipeError(
                    f"synthesis.sparse drops patches of an image, which {name} cannot do without: "
                    f"{error}; set synthesis.sparse.share = 0"
                ) from error
        nodes = {node.name: node for node in graph_module.graph.nodes}
        self.running: Targets = []
        inputs: list[str] = []
        for call in (nodes[name] for name in structure.norms):
            norm = called_module(graph_module, call)
            if (
                isinstance(norm, nn.BatchNorm2d)
                and norm.running_mean is not None
                and norm.running_var is not None
            ):
                self.running.append((norm.running_mean, norm.running_var))
                inputs.append(call.all_input_nodes[0].name)
        attentions = [
            name for a in structure.attentions for name in (a.logits, a.probabilities, a.output)
        ]
        shapes = [shape_of(nodes[a.probabilities]) for a in structure.attentions]
        self.attention_shapes = tuple(shape for shape in shapes if shape is not None)
        """(..., H, N, M) of each attention's probabilities, of two images."""
        read = [*inputs, *attentions, structure.features]
        self.tapped = Tapped(simplified(graph_module, read), read)
        self._norms = len(inputs)

    @property
    def has_statistics(self) -> bool:
        """Whether there is a BatchNorm whose statistics images can match."""
        return bool(self.running)

    @property
    def has_attentions(self) -> bool:
        """Whether there are attentions, whose patches images can tell apart."""
        return bool(self.attention_shapes)

    @property
    def has_class_token(self) -> bool:
        """Whether the same patches are in every attention of an image, behind a class token."""
        tokens = {shape[-2:] for shape in self.attention_shapes}
        whole = all(
            len(shape) == 4 and shape[0] == TRACED_IMAGES for shape in self.attention_shapes
        )
        return whole and len(tokens) == 1 and all(n == m > n - before_patches(n) for n, m in tokens)

    def patches_along(self, shape: tuple[int, int, int]) -> int:
        """Patches along a side of images (C, H, W) in the last attention.

        0 where they make no grid of at least two that fills an image.
        """
        if not self.attention_shapes:
            return 0
        keys = self.attention_shapes[-1][-1]
        side = math.isqrt(keys - before_patches(keys))
        return side if side > 1 and not any(size % side for size in shape[1:]) else 0

    @property
    def grid(self) -> int:
        """The side of the grid of patches of a ``sparse`` teacher."""
        assert self._patches is not None
        return self._patches.side

    @property
    def patch(self) -> int:
        """The side of such a patch, in pixels."""
        assert self._patches is not None
        return self._patches.pixels

    @torch.no_grad()
    def judged(self, images: Tensor, labels: Tensor, patches: Tensor | None = None) -> Seen:
        """What it shows of images that nothing shifts, or of some patches of them."""
        for swing in self.swings:
            swing.rest()
        return self(images, labels, patches)

    def __call__(self, images: Tensor, labels: Tensor, patches: Tensor | None = None) -> Seen:
        """Run it on images (B, C, H, W) with labels (B,).

        Args:
            images: whole, whatever it looks at.
            labels: of them.
            patches: (B, k) int64, places in the grid that a ``sparse`` teacher looks at; all
                without it.
        """
        before = None
        if self._patches is not None:
            self._patches.chosen = patches
            before = None if patches is None else self._patches.before
        view = self.tapped(images)
        *taps, features = view.features
        norms, attentions = tuple(taps[: self._norms]), taps[self._norms :]
        attended = tuple(
            Attended(*three, before)
            for three in zip(attentions[::3], attentions[1::3], attentions[2::3], strict=True)
        )
        if features.ndim > 2:
            features = features.flatten(2).mean(2)
        return Seen(images, labels, view.logits, features, norms, attended, self.running)


class WeightedLosses:
    """The terms of images and labels, by the names of their losses."""

    def __init__(
        self,
        teacher: ImageTeacher,
        losses: Mapping[str, ImageLoss],
        held: Mapping[str, Sequence[Tensor]] | None = None,
        student: Callable[[Seen], Seen] | None = None,
    ) -> None:
        """Prepare.

        Args:
            teacher: what the losses read.
            losses: by name; those of weight 0 are left out.
            held: what each loss began the batch with.
            student: adds what the quantized network shows of what was seen; without it, losses
                that read that are left out.
        """
        self.teacher, self.held, self.student = teacher, held or {}, student
        self.losses = {
            name: loss
            for name, loss in losses.items()
            if loss.weight and (student is not None or "student" not in loss.reads)
        }

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Each loss of images (B, C, H, W) and labels (B,) times its weight, 0-d."""
        return self.of(self.teacher(images, labels))

    def of(
        self, seen: Seen, drawn: Mapping[str, tuple[Tensor, ...]] | None = None
    ) -> dict[str, Tensor]:
        """The same of what was seen, with what each loss drew for the step."""
        if self.student is not None and any("student" in x.reads for x in self.losses.values()):
            seen = self.student(seen)
        drawn = drawn or {}
        return {
            name: loss.weight * loss(seen, *self.held.get(name, ()), *drawn.get(name, ()))
            for name, loss in self.losses.items()
        }


class ClassMeans:
    """Mean features of each class over the batches so far."""

    def __init__(self, classes: int, size: int, device: torch.device) -> None:
        """Begin without images, for features (D,) of a size."""
        self.sums = torch.zeros(classes, size, dtype=torch.float32, device=device)
        self.counts = torch.zeros(classes, dtype=torch.float32, device=device)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Take in features (B, D) of labels (B,)."""
        # As a product: sums of scattered rows have no order on a GPU.
        member = functional.one_hot(labels, len(self.counts)).float()
        self.sums += member.T @ features.float()
        self.counts += member.sum(0)

    def means(self) -> Tensor:
        """(classes, D); zeros where a class has no image."""
        return self.sums / self.counts.clamp_min(1)[:, None]
