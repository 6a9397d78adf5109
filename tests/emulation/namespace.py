"""The ops on emulated CUDA kernels, by their names."""

import itertools
from typing import Any

from tests.emulation.attention import Attention
from tests.emulation.build import build
from tests.emulation.filters import Filters
from tests.emulation.heads import InterHeadSimilarity, StructuralSimilarity
from tests.emulation.launching import Launcher, Setting
from tests.emulation.losses import Distillation, Moments, Statistics
from tests.emulation.maps import Maps
from tests.emulation.mixing import Mixing
from tests.emulation.packing import Packing
from tests.emulation.quantization import Quantization
from tests.emulation.ranges import Ranges
from tests.emulation.rounding import Rounding
from tests.emulation.rows import Norms, Softmaxes
from tests.emulation.similarity import Similarity
from tests.emulation.variation import Variation

FAMILIES = {
    "fake_quantize": Quantization,
    "ranges": Ranges,
    "bn_statistics_loss": Statistics,
    "channel_moments": Moments,
    "distillation_loss": Distillation,
    "grad_cam": Maps,
    "inter_head_similarity_loss": InterHeadSimilarity,
    "layer_norm_fake_quantize": Norms,
    "low_pass": Filters,
    "pack_codes": Packing,
    "patch_similarity_entropy": Similarity,
    "quantized_attention": Attention,
    "random_mix": Mixing,
    "soft_round": Rounding,
    "softmax_fake_quantize": Softmaxes,
    "structural_similarity_loss": StructuralSimilarity,
    "total_variation": Variation,
}


class Emulated:
    """Builds a library when one of its ops is called; skips by name what the machine lacks."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._seeds = itertools.count()

    def __getattr__(self, op: str) -> Any:
        library = next((name for name, kind in FAMILIES.items() if hasattr(kind, op)), None)
        if library is None:
            raise AttributeError(f"no emulated kernels of {op}")
        launcher = Launcher(build(library), self._setting, next(self._seeds))
        return getattr(FAMILIES[library](launcher), op)
