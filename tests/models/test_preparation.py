"""Modules as users have them: wrapped, pruned, normalised, hooked, or not usable at all."""

import copy
from collections import namedtuple

import pytest
import torch
import torch.nn.utils.parametrizations as parametrizations
from torch import fx, nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.nn.utils import parametrize, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

from synq_fast.errors import ModelError
from synq_fast.models import load_teacher
from tests.tiny import CLASSES, SHAPE, run, tiny_images, tiny_net

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


class Absolute(nn.Module):
    def forward(self, weight):
        return weight.abs()


def edited(*edits):
    net = tiny_net()
    for edit in edits:
        edit(net)
    return net


def without_parameter(net):
    weight = net.conv2.weight
    del net.conv2.weight
    net.conv2.weight = 1.5 * weight  # no leaf, so that deepcopy refuses it


def computed_by_a_hook(net):
    original = net.conv2.weight
    del net.conv2.weight
    net.conv2.raw = original

    def compute(module, inputs):
        module.weight = 0.5 * module.raw

    net.conv2.register_forward_pre_hook(compute)
    net.conv2.weight = original * 0.5


COMPUTED = {
    "pruned": lambda: edited(
        lambda n: prune.l1_unstructured(n.conv2, "weight", 0.5),
        lambda n: prune.random_unstructured(n.fc, "bias", 0.5),
    ),
    "pruned twice": lambda: edited(
        lambda n: prune.l1_unstructured(n.conv2, "weight", 0.3),
        lambda n: prune.ln_structured(n.conv2, "weight", 0.5, 2, 0),
    ),
    "weight norm": lambda: edited(lambda n: weight_norm(n.conv2), lambda n: weight_norm(n.fc)),
    "spectral norm": lambda: edited(lambda n: spectral_norm(n.conv2)),
    "new weight norm": lambda: edited(lambda n: parametrizations.weight_norm(n.conv2)),
    "new spectral norm": lambda: edited(lambda n: parametrizations.spectral_norm(n.fc)),
    "parametrized": lambda: edited(
        lambda n: parametrize.register_parametrization(n.conv1, "weight", Absolute())
    ),
    "plain tensor": lambda: edited(without_parameter),
}
WRAPPED = {
    "data parallel": lambda: nn.DataParallel(tiny_net()),
    "averaged": lambda: AveragedModel(tiny_net()),
    "compiled": lambda: torch.compile(tiny_net(), backend="eager"),
    "compiled data parallel": lambda: torch.compile(nn.DataParallel(tiny_net()), backend="eager"),
    "part compiled": lambda: edited(
        lambda n: setattr(n, "conv2", torch.compile(n.conv2, backend="eager"))
    ),
    "synchronized norms": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(tiny_net()),
    "graph of layers": lambda: fx.symbolic_trace(tiny_net()),
    "harmless hook": lambda: edited(
        lambda n: n.conv2.register_forward_hook(lambda module, x, y: None)
    ),
}


@pytest.mark.parametrize("form", [*COMPUTED, *WRAPPED])
def test_the_copy_is_plain_and_computes_the_same(form):
    given = {**COMPUTED, **WRAPPED}[form]().eval()
    images = tiny_images(4)
    before = given(images)
    teacher = load_teacher(given, input_shape=SHAPE)
    torch.testing.assert_close(teacher.module(images), before, rtol=1e-6, atol=1e-6)
    assert teacher.module.state_dict().keys() == tiny_net().state_dict().keys()
    types = {type(m) for m in tiny_net().modules()}
    plain = {type(m) for m in teacher.module.modules()}
    assert {t for t in plain if not issubclass(t, fx.GraphModule)} <= types
    for module in teacher.module.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    # The user's module still is what it was, classes and values.
    assert torch.equal(given(images), before)
    assert any(torch.is_grad_enabled() and p.requires_grad for p in given.parameters())


def test_spectral_norm_of_a_module_in_training_mode_is_that_of_evaluation():
    given = edited(lambda n: parametrizations.spectral_norm(n.fc)).train()
    teacher = load_teacher(given, input_shape=SHAPE)
    images = tiny_images(4)
    torch.testing.assert_close(teacher.module(images), given.eval()(images))


def test_a_weight_shared_below_a_parametrization_stays_two_weights():
    given = tiny_net()
    given.conv3 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
    given.conv3.weight = given.conv2.weight
    parametrize.register_parametrization(given.conv3, "weight", Absolute())
    teacher = load_teacher(given, input_shape=SHAPE)
    assert torch.equal(teacher.module.conv3.weight, given.conv2.weight.abs())
    assert torch.equal(teacher.module.conv2.weight, given.conv2.weight)


@pytest.mark.parametrize("form", ["pruned", "new weight norm", "synchronized norms"])
def test_quantizes_like_its_plain_form(form):
    given = {**COMPUTED, **WRAPPED}[form]()
    plain = load_teacher(given, input_shape=SHAPE).module
    options = {"overrides": {"finetune.steps": 0, "synthesis.steps": 1}}
    images = tiny_images(4)
    expected = run(plain, **options).model(images)
    assert torch.equal(run(given, **options).model(images), expected)


def test_distributed_data_parallel_is_unwrapped():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        given = nn.parallel.DistributedDataParallel(tiny_net())
        assert type(load_teacher(given, input_shape=SHAPE).module).__name__ == "TinyNet"
    finally:
        destroy_process_group()


def test_synchronized_norms_of_vectors_become_one_dimensional():
    module = nn.Sequential(nn.Flatten(), nn.SyncBatchNorm(128), nn.Linear(128, CLASSES)).eval()
    teacher = load_teacher(module, input_shape=SHAPE)
    assert type(teacher.module[1]) is nn.BatchNorm1d
    assert torch.equal(teacher.module(tiny_images(3)), module(tiny_images(3)))


def exported():
    return torch.export.export(tiny_net(), (tiny_images(2),))


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.LazyConv2d(3, 3)


class Around(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.net, self.function = tiny_net(), function

    def forward(self, x):
        return self.function(self.net(x))


Heads = namedtuple("Heads", ["logits", "aux"])


class Output(dict):
    """Like the outputs of transformers."""


REFUSED = [
    (lambda: torch.jit.script(tiny_net()), r"TorchScript.*pass the nn\.Module"),
    (lambda: torch.jit.trace(tiny_net(), tiny_images(2)), "TorchScript"),
    (lambda: nn.Sequential(torch.jit.script(tiny_net())), "0 of Sequential is TorchScript"),
    (exported, r"ExportedProgram.*pass the nn\.Module that was exported"),
    (lambda: exported().module(), "graph of ATen ops.*pass the nn.Module"),
    (lambda: run(overrides={"finetune.steps": 0}).model, "is quantized.*conv1 is synq-fast's"),
    (
        lambda: torch.ao.nn.qat.Conv2d(
            2, 3, 3, qconfig=torch.ao.quantization.get_default_qat_qconfig()
        ),
        "is quantized, or prepared for it: it is torch.ao's Conv2d",
    ),
    (lambda: Lazy(), r"lazy layers without weights yet \(conv\.weight"),
    (lambda: tiny_net().to("meta"), "meta device, without values"),
    (lambda: tiny_net().to(torch.complex64), "holds complex numbers"),
    (lambda: type(tiny_net()), r"the class TinyNet.*TinyNet\(\.\.\.\)"),
    (lambda: tiny_net().state_dict(), "weights=FILE"),
    (lambda: torch.sigmoid, "forward of an nn.Module"),
    (lambda: Around(nn.functional.dropout), "other logits each time.*F.dropout"),
    (lambda: Around(lambda y: (y, y)), r"returned tuple.*self\.model\(x\)\[0\]"),
    (lambda: Around(lambda y: Output(h=y, logits=y)), r'Output with h, logits.*\["logits"\]'),
    (lambda: Around(lambda y: Heads(y, y)), r"Heads with logits, aux.*self\.model\(x\)\.logits"),
    (lambda: Around(lambda y: y[:, :1]), r"one logit.*torch\.cat\(\[torch\.zeros_like\(z\), z\]"),
    (
        lambda: edited(lambda n: n.conv2.register_forward_hook(lambda module, x, y: 2 * y)),
        r"hooks that change its logits \(conv2 \(Conv2d\)\)",
    ),
    (lambda: edited(lambda n: n.fc.register_forward_pre_hook(lambda module, x: (2 * x[0],))),
     r"hooks that change its logits \(fc \(Linear\)\)"),
    (lambda: edited(lambda n: setattr(n.fc, "forward", lambda x: x)), "fc .* forward of its own"),
    (lambda: edited(lambda n: setattr(n, "later", (i for i in ()))), "cannot be copied"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_cannot_be_used_says_what_it_is(number):
    make, match = REFUSED[number]
    with pytest.raises(ModelError, match=f"(?s){match}"):
        load_teacher(make(), input_shape=SHAPE)


def test_a_part_on_another_device():
    net = tiny_net()
    net.fc = net.fc.to("meta")
    with pytest.raises(ModelError, match="on the meta device"):
        load_teacher(net, input_shape=SHAPE)


def test_a_hook_that_computes_the_weight_is_baked_in():
    given = edited(computed_by_a_hook)
    teacher = load_teacher(given, input_shape=SHAPE)
    images = tiny_images(4)
    torch.testing.assert_close(teacher.module(images), given(images))
    assert "conv2.weight" in dict(teacher.module.named_parameters())


def test_weights_of_a_parametrized_form_load_into_it(tmp_path):
    source = copy.deepcopy(tiny_net(seed=5))
    parametrizations.weight_norm(source.conv2)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    given = edited(lambda n: parametrizations.weight_norm(n.conv2))
    teacher = load_teacher(given, weights=tmp_path / "w.pt", input_shape=SHAPE)
    torch.testing.assert_close(teacher.module(tiny_images(2)), source(tiny_images(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_load_and_are_refused_where_work_begins(dtype):
    given = tiny_net().to(dtype)
    assert load_teacher(given, input_shape=SHAPE).num_classes == CLASSES
    with pytest.raises(ModelError, match=r"convert it with \.float\(\)"):
        run(given)
