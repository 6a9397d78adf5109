"""Transformers through the engine: the recipe that they get, their files, and what is refused."""

import math
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import synq_fast
from synq_fast.engine.asked_for import asked_for
from synq_fast.errors import RecipeError, SynqFastError, SynqFastWarning
from synq_fast.models import Teacher
from synq_fast.quant import ActivationQuantizer, BitWidths
from synq_fast.recipes import load_recipe
from tests.tiny import SHAPE as SMALL
from tests.tiny import equal_states, run, tiny_net
from tests.transformers import HEADS, SHAPE, TinyViT, tiny_vit

SHARD = "bank/shard-00000.safetensors"
FEW = {
    "blocks.images": 8,
    "blocks.steps": 3,
    "blocks.batch_size": 4,
}


def silently(*arguments, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no effect")
        return run(*arguments, **options)


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
def test_a_transformer_is_quantized_saved_and_loaded(tmp_path, bits):
    teacher = tiny_vit()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run(teacher, recipe=None, bits=bits, output=tmp_path, overrides=FEW)
    # The recipe needs no BatchNorm, so that there is nothing to warn of.
    assert not any("BatchNorm" in str(w.message) for w in caught)
    assert result.recipe.name == ("synq-fast-vit-8bit" if bits == "w8a8" else "synq-fast-vit")
    coverage = synq_fast.coverage(result.model)
    assert (coverage.weights, coverage.inputs) == (coverage.weights_of, coverage.inputs_of)
    assert coverage.placement == "vit"
    images = torch.randn(4, *SHAPE)
    loaded = synq_fast.load(tmp_path, model=TinyViT())
    assert torch.equal(loaded(images), result.model(images))
    ranges = [m for m in result.model.modules() if isinstance(m, ActivationQuantizer)]
    assert all((m.range_max > m.range_min).all() for m in ranges)
    # q, k, v and P of two layers.
    of_heads = [m for m in ranges if m.heads == HEADS]
    assert len(of_heads) == (0 if bits == "w8a8" else 8)


def test_the_recipe_follows_network_and_widths():
    def chosen(network, bits, shape=SHAPE):
        widths = BitWidths.parse(bits)
        return asked_for(network, None, shape, None, widths)[1].name

    assert chosen(TinyViT(), "w8a8") == "synq-fast-vit-8bit"
    assert chosen(TinyViT(), "w8a4") == "synq-fast-vit"
    assert chosen(tiny_net(), "w8a8", SMALL) == "synq-fast-digits"

    class WithNorm(TinyViT):
        """Has BatchNorm statistics, which say more of the training data than patches do."""

        def __init__(self):
            super().__init__()
            self.stem = nn.BatchNorm2d(3)

        def forward(self, x):
            return super().forward(self.stem(x))

    class Opaque(TinyViT):
        def forward(self, x):
            return super().forward(x) if bool(x.sum() < 1e9) else x

    class WithoutAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(SHAPE[1:]), nn.Linear(3 * SHAPE[1] * SHAPE[2], 3)

        def forward(self, x):
            return self.fc(self.norm(x).flatten(1))

    for network in (WithNorm(), Opaque(), WithoutAttention()):
        assert chosen(network, "w4a4") == "synq-fast-digits"


def test_widths_of_one_command_share_their_images():
    one, other = load_recipe("synq-fast-vit"), load_recipe("synq-fast-vit-8bit")
    assert one.synthesis == other.synthesis and one.filter == other.filter


def test_losses_of_attention_that_are_off_need_none():
    off = {"synthesis.patches.weight": 0.0, "synthesis.attention_prior.weight": 0.0}
    result = silently(tiny_net(), recipe="synq-digits", overrides=off)
    assert result.recipe.name == "synq-digits"


def test_a_recipe_for_transformers_is_refused_for_others_with_the_way_out():
    with pytest.raises(RecipeError, match="has none that could be found; use a recipe for convol"):
        silently(tiny_net(), recipe="synq-fast-vit", overrides=FEW)


def test_a_recipe_of_batchnorms_takes_patches_for_a_transformer_and_says_so():
    with pytest.warns(SynqFastWarning, match="similarity of its patches alone"):
        result = silently(tiny_vit(), recipe="synq-digits")
    names = {type(loss).__name__ for loss in result.recipe.synthesis.losses if loss.weight}
    assert names == {"Classes", "Patches", "Roughness"}


def test_widths_share_images_whatever_form_of_the_network_they_quantize(tmp_path):
    """The recipe for 8 bits leaves the network as it is, the other one rotates it."""
    made = {}
    for bits, rotate in (("w8a8", "never"), ("w4a4", "always")):
        result = silently(
            tiny_vit(), recipe=None, bits=bits, overrides=FEW, bank=tmp_path, output=None
        )
        assert result.recipe.quantization.rotate == rotate
        made[bits] = [(p.name, p.stat().st_mtime_ns) for p in tmp_path.glob("shard-*.safetensors")]
    assert made["w8a8"] and made["w8a8"] == made["w4a4"]


def test_images_stay_within_valid_pixels(tmp_path):
    silently(tiny_vit(), recipe="synq-fast-vit-8bit", output=tmp_path)
    teacher = tiny_vit()
    low, high = teacher.valid_range()
    assert low.shape == (3, 1, 1)
    assert low.flatten().tolist() == [-2.0] * 3 and high.flatten().tolist() == [2.0] * 3
    shards = list((tmp_path / "bank").glob("shard-*.safetensors"))
    assert shards
    for shard in shards:
        images = load_file(str(shard))["images"]
        assert images.min() >= -2 and images.max() <= 2


def torchvision_swin(version: int):
    swin = pytest.importorskip("torchvision").models.swin_transformer
    new = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    options = new if version == 2 else {}
    return swin.SwinTransformer([2, 2], 8, [2, 2], [2, 4], [3, 3], num_classes=5, **options)


def torchvision_vit():
    models = pytest.importorskip("torchvision").models
    return models.VisionTransformer(24, 8, 2, 2, 16, 32, num_classes=5)


def of_timm(name: str, **options):
    return pytest.importorskip("timm").create_model(name, num_classes=5, img_size=24, **options)


PUBLISHED = {
    "torchvision swin": lambda: torchvision_swin(1),
    "torchvision swin v2": lambda: torchvision_swin(2),
    "torchvision vit": torchvision_vit,
    "timm deit": lambda: of_timm(
        "deit_small_patch16_224", patch_size=8, depth=2, embed_dim=16, num_heads=2
    ),
    "timm deit distilled": lambda: of_timm(
        "deit_tiny_distilled_patch16_224", patch_size=8, depth=2, embed_dim=16, num_heads=2
    ),
    "timm swin": lambda: of_timm(
        "swin_tiny_patch4_window7_224",
        patch_size=2,
        window_size=3,
        depths=(2, 2),
        num_heads=(1, 2),
        embed_dim=8,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architectures_go_all_the_way(tmp_path, name):
    torch.manual_seed(0)
    network = PUBLISHED[name]().eval()
    for parameter in network.parameters():
        # Heads and tables of new models are zero.
        nn.init.normal_(parameter, std=0.2)
    teacher = Teacher(network, name, (3, 24, 24), (0.5,) * 3, (0.5,) * 3, 5)
    images, labels = torch.randn(6, 3, 24, 24), torch.arange(6) % 5
    options = {"recipe": None, "output": tmp_path, "overrides": FEW}
    result = run(teacher, **options, evaluation=[(images, labels)])
    coverage = synq_fast.coverage(result.model)
    assert coverage.weights == coverage.weights_of and coverage.placement == "vit"
    assert {"float32", "post-training", "quantized"} <= result.metrics.keys()
    loaded = synq_fast.load(tmp_path, model=PUBLISHED[name]().eval())
    assert torch.equal(loaded(images), result.model(images))
    again = run(teacher, **options, evaluation=[(images, labels)], resume=True)
    assert equal_states(again.model, result.model) and again.history == result.history


SPARSE = {"synthesis.sparse.share": 0.3, "synthesis.sparse.milestones": [0.3, 0.6]}


@pytest.mark.parametrize("name", ["torchvision vit", "timm deit", "timm deit distilled"])
def test_patches_can_be_dropped_while_images_are_made(tmp_path, name):
    network = PUBLISHED[name]().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    teacher = Teacher(network, name, (3, 24, 24), (0.5,) * 3, (0.5,) * 3, 5)
    results = [
        silently(teacher, recipe="synq-fast-vit-8bit", output=tmp_path / str(n), overrides=changes)
        for n, changes in enumerate([{}, SPARSE, SPARSE])
    ]
    dense, sparse, again = (load_file(str(tmp_path / str(n) / SHARD))["images"] for n in range(3))
    assert dense.shape == sparse.shape and not torch.equal(dense, sparse)
    assert torch.equal(sparse, again) and equal_states(results[1].model, results[2].model)


@pytest.mark.parametrize("name", ["torchvision swin", "torchvision swin v2", "timm swin"])
def test_patches_of_windows_cannot_be_dropped(name):
    teacher = Teacher(PUBLISHED[name](), name, (3, 24, 24), (0.5,) * 3, (0.5,) * 3, 5)
    message = r"SwinTransformer\w* cannot do without: .* over windows.*synthesis.sparse.share = 0"
    with pytest.raises(RecipeError, match=message):
        silently(teacher, recipe="synq-fast-vit", overrides=FEW | SPARSE)


def test_images_of_a_wrong_size_are_refused_by_name():
    network = PUBLISHED["timm deit"]()
    teacher = Teacher(network.eval(), "deit", (3, 32, 32), (0.5,) * 3, (0.5,) * 3, 5)
    with pytest.raises(SynqFastError, match=r"32.*24"):
        run(teacher, recipe="synq-fast-vit", overrides=FEW)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_end_to_end_with_maps_of_patches_and_heads(precision):
    """SynQ's and MimiQ's losses on a transformer, after blocks, where ops are fused."""
    training = {
        "stages": ["synthesis", "calibration", "blocks", "finetune"],
        "finetune.steps": 3,
        "finetune.perturbation.weight": 0.0,
        "finetune.features.weight": 1.0,
        "finetune.cam.weight": 1.0,
        "finetune.head_similarity.weight": 1.0,
        "finetune.precision": precision,
    }
    result = silently(tiny_vit(), recipe="synq-fast-vit", overrides={**FEW, **training})
    last = result.history[-1]
    assert last["stage"] == "finetune"
    assert all(math.isfinite(last[name]) for name in ("kl", "cam", "features", "head_similarity"))
    assert last["cam"] > 0 and last["head_similarity"] > 0
    assert all(p.isfinite().all() for p in result.model.state_dict().values())
