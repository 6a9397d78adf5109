"""Gradient rules as data: what is read from them, and that C++ and Python make the same of them."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from synq_fast.ops import _autograd
from synq_fast.ops._registry import OPS
from synq_fast.ops._rule import make_rule

ROOT = Path(__file__).parents[2]
GENERATOR = ROOT / "csrc" / "ops" / "generate_autograd.py"


def write(folder: Path, *calls: str) -> str:
    """The C++ for ops that are registered by these calls, made without torch."""
    ops = folder / "ops"
    ops.mkdir()
    (ops / "_rule.py").write_text((ROOT / "synq_fast" / "ops" / "_rule.py").read_text())
    (ops / "some.py").write_text("\n".join(calls))
    command = [sys.executable, "-S", "-c", NO_TORCH, GENERATOR, folder / "out.cpp", ops]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise ValueError(result.stderr)
    return " ".join((folder / "out.cpp").read_text().split())


NO_TORCH = """
import runpy, sys
sys.modules["torch"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_rules_in_the_source_are_those_that_are_registered():
    spec = importlib.util.spec_from_file_location("generator", GENERATOR)
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    _, rules = generator.load_rules(ROOT / "synq_fast" / "ops")

    def plain(rule):
        texts = [
            (formula.of, *(part and ast.unparse(part) for part in formula[1:]))
            for formula in rule.formulas
        ]
        return rule.arguments, rule.results, rule.types, texts, rule.once

    assert {name: plain(rule) for name, rule in rules.items()} == {
        name: plain(op.rule) for name, op in OPS.items()
    }


def test_what_a_rule_saves():
    rule = make_rule(
        "op",
        "(Tensor x, Tensor? w, int kind=2) -> (Tensor y, Tensor(a!) z)",
        {"x": "back(grad_y, x if kind >= 2 else z, dtype_of(x), kind, needs(w))"},
    )
    assert [argument.type for argument in rule.arguments] == ["Tensor", "Tensor?", "int"]
    (formula,) = rule.formulas
    assert list(rule.saved(formula)) == ["x if kind >= 2 else z", "dtype_of(x)", "kind"]
    assert rule.used_gradients(formula) == [0]
    assert rule.constants() == (1,)


def test_the_nodes_that_are_written(tmp_path):
    text = write(
        tmp_path,
        'register("constant", "(Tensor x) -> Tensor", fake=f, reference=r)',
        'register("back", "(Tensor grad, Tensor? other, Tensor x) -> Tensor", once="it")',
        'register("op", "(Tensor x, bool flag) -> (Tensor y, Tensor z)",'
        ' gradients={"x": "back(grad_y, grad_z, x) if flag else grad_y"})',
    )
    assert 'm.impl("constant", torch::CppFunction::makeFallthrough());' in text
    assert 'refuse_second_derivative("it");' in text
    assert "if (flag) { ctx->save_for_backward({x}); }" in text
    assert (
        "result[0] = saved.empty() ? incoming[0] "
        ": call_back(incoming[0], present(incoming[1]), saved[0]);"
    ) in text
    assert "mark_non_differentiable" not in text


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ('{"x": "back(grad, unknown(x), x)"}', "unknown"),
        ('{"x": "back(grad, None, x) if flag else grad", "y": "grad"}', "one formula"),
        ('{"y": "back(grad, None, y) if needs(y) else grad", "x": "grad"}', "one formula"),
    ],
)
def test_a_rule_that_cannot_be_written_stops_the_build(tmp_path, rule, message):
    with pytest.raises(ValueError, match=message):
        write(
            tmp_path,
            'register("back", "(Tensor grad, Tensor? other, Tensor x) -> Tensor", once="it")',
            f'register("op", "(Tensor x, Tensor y, bool flag) -> Tensor", gradients={rule})',
        )


def test_a_source_that_has_not_changed_is_left_alone(tmp_path):
    write(tmp_path, 'register("op", "(Tensor x) -> Tensor")')
    before = (tmp_path / "out.cpp").stat().st_mtime_ns
    subprocess.run([sys.executable, GENERATOR, tmp_path / "out.cpp", tmp_path / "ops"], check=True)
    assert (tmp_path / "out.cpp").stat().st_mtime_ns == before


def test_python_and_cpp_know_the_same_helpers():
    x = torch.randn(2, 3, 4).half()
    assert _autograd.dtype_of(x) == torch.float16
    assert not _autograd.is_channels_last(x)
    images = torch.randn(2, 3, 4, 5)
    assert not _autograd.is_channels_last(images)
    assert _autograd.is_channels_last(images.to(memory_format=torch.channels_last))
    scaled = _autograd.scale_images(x.float(), torch.tensor([1.0, 0.0]), torch.bfloat16)
    assert scaled.dtype == torch.bfloat16 and scaled[1].eq(0).all()
    header = (ROOT / "csrc" / "ops" / "autograd.h").read_text()
    assert all(f" {name}(" in header for name in _autograd._HELPERS)
