"""`evaluate` against computations by hand, and its manners."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from synq_fast.data import load_dataset
from synq_fast.errors import DataError, ModelError
from synq_fast.evaluation import EvaluationResult, evaluate
from synq_fast.models import load_teacher


class Logits(nn.Module):
    """Takes its inputs for logits."""

    def forward(self, x):
        return x.flatten(1)


def as_dataset(rows, labels):
    return TensorDataset(torch.tensor(rows, dtype=torch.float32), torch.tensor(labels))


def test_by_hand():
    rows = [
        [9, 0, 0, 0, 0, 0, 0],  # first
        [5, 4, 3, 2, 1, 0, -1],  # fifth
        [5, 4, 3, 2, 1, 0, -1],  # sixth
        [0, 0, 0, 0, 0, 0, 1],  # first
    ]
    labels = [0, 4, 5, 6]
    result = evaluate(Logits(), as_dataset(rows, labels), batch_size=3)
    loss = sum(
        math.log(sum(math.exp(v) for v in row)) - row[label]
        for row, label in zip(rows, labels, strict=True)
    )
    assert (result.top1, result.top5, result.count) == (50.0, 75.0, 4)
    assert result.loss == pytest.approx(loss / 4, rel=1e-6)


def test_fewer_than_five_classes():
    result = evaluate(Logits(), as_dataset([[1, 0, 0], [1, 0, 0]], [0, 2]))
    assert (result.top1, result.top5) == (50.0, 100.0)


def test_nan_logits_count_as_wrong():
    nan = float("nan")
    data = as_dataset([[nan, 0, 0], [0, nan, 0], [0, 0, 1]], [0, 0, 2])
    with pytest.warns(RuntimeWarning, match="2 of 3 images hold NaN"):
        result = evaluate(Logits(), data)
    assert result.top1 == result.top5 == pytest.approx(100 / 3)
    assert math.isnan(result.loss)


@pytest.mark.parametrize("batch_size", [1, 7, 360])
def test_batch_size_and_source_do_not_matter(batch_size):
    teacher = load_teacher("digits-resnet20")
    digits = load_dataset("digits", teacher)
    some = Subset(digits, range(40))
    whole = evaluate(teacher, some)
    part = evaluate(teacher.module, some, batch_size=batch_size)
    loader = evaluate(teacher.module, DataLoader(some, 9))
    for other in (part, loader):
        assert (other.top1, other.top5, other.count) == (whole.top1, whole.top5, 40)
        assert other.loss == pytest.approx(whole.loss, rel=1e-4)


def test_a_name_needs_a_teacher():
    teacher = load_teacher("digits-resnet20")
    assert evaluate(teacher, "digits").count == 360
    with pytest.raises(DataError, match="load_dataset"):
        evaluate(teacher.module, "digits")


class Fragile(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.9)

    def forward(self, x):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        if x.max() > 100:
            raise RuntimeError("broken")
        return self.dropout(self.bn(x))


def test_modes_are_restored_and_statistics_untouched():
    model = Fragile().train()
    model.bn.eval()
    before = model.bn.running_mean.clone()
    evaluate(model, as_dataset([[5, 0, 0]], [0]))
    assert model.training
    assert model.dropout.training
    assert not model.bn.training
    assert torch.equal(model.bn.running_mean, before)
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(model, as_dataset([[500, 0, 0]], [0]))
    assert model.training
    assert not model.bn.training


def test_progress_bar_is_quiet_about_the_result(capsys):
    result = evaluate(Logits(), as_dataset([[1, 0]], [0]), progress=True)
    assert result == EvaluationResult(100.0, 100.0, 1, pytest.approx(0.3132617))


def test_small_integer_labels():
    data = TensorDataset(torch.eye(3), torch.tensor([0, 1, 2], dtype=torch.uint8))
    assert evaluate(Logits(), data).top1 == 100.0


@pytest.mark.parametrize("data", [[], TensorDataset(torch.empty(0, 3), torch.empty(0).long())])
def test_empty(data):
    with pytest.raises(DataError, match="empty"):
        evaluate(Logits(), data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (as_dataset([[1, 0]], [2]), "classes 0 to 1"),
        (as_dataset([[1, 0]], [-1]), "from -1"),
        (as_dataset([[1, 0]], [0.0]), "one integer per image, got torch.float32"),
        (as_dataset([[1, 0]], [[1, 0]]), "one integer per image"),
        (TensorDataset(torch.zeros(2, 2)), "pairs"),
        (3, "cannot evaluate on int"),
    ],
)
def test_bad_datasets(data, message):
    with pytest.raises(DataError, match=message):
        evaluate(Logits(), data)


def test_a_model_without_logits():
    with pytest.raises(ModelError, match=r"for 2 images the model returned \(2, 1, 3\)"):
        evaluate(nn.Identity(), TensorDataset(torch.zeros(2, 1, 3), torch.zeros(2).long()))


def test_bad_batch_size():
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(Logits(), as_dataset([[1, 0]], [0]), batch_size=0)
