"""`evaluate` against computations by hand, and its manners."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from synq_fast.data import load_dataset
from synq_fast.engine.evaluation import EvaluationResult, _Tally, evaluate
from synq_fast.errors import DataError, ModelError
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
    captured = capsys.readouterr()  # no terminal
    assert captured.out == captured.err == ""


def test_progress_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    evaluate(Logits(), as_dataset([[1, 0]] * 7, [0] * 7), progress=True, batch_size=2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "evaluate" in captured.err and "7/7" in captured.err


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


# Precision, workers, and what the host waits for


class Watching(nn.Module):
    """A layer that notes how it is called."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.seen = set()

    def forward(self, x):
        y = self.fc(x)
        self.seen.add((x.dtype, y.dtype, torch.backends.cudnn.allow_tf32))
        return y


@pytest.mark.parametrize(
    ("precision", "dtype", "tf32"),
    [
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ],
)
def test_precision_of_the_network(precision, dtype, tf32):
    torch.manual_seed(0)
    model, before = Watching(), torch.backends.cudnn.allow_tf32
    data = TensorDataset(torch.randn(50, 6), torch.randint(4, (50,)))
    result = evaluate(model, data, precision=precision)
    assert model.seen == {(torch.float32, dtype, tf32)}
    assert torch.backends.cudnn.allow_tf32 == before
    logits = model(data.tensors[0])
    expected = torch.nn.functional.cross_entropy(logits, data.tensors[1]).item()
    assert result.loss == pytest.approx(expected, rel=1e-2 if precision == "bf16" else 1e-5)
    assert (result.loss == pytest.approx(expected, rel=1e-6)) == (precision != "bf16")


def test_bf16_loss_is_computed_in_float32():
    logits = torch.tensor([[0.0, 1 / 256, 0.5]]).bfloat16()
    result = evaluate(Logits(), TensorDataset(logits, torch.tensor([1])))
    expected = torch.nn.functional.cross_entropy(logits.float(), torch.tensor([1])).item()
    assert result.loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "fp8"}, "float32, tf32, bf16, got 'fp8'"), ({"workers": -1}, "workers")],
)
def test_options_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Logits(), as_dataset([[1, 0]], [0]), **options)


def test_workers_read_any_dataset():
    data = as_dataset([[i, 5] for i in range(10)], [int(i < 5) for i in range(10)])
    assert evaluate(Logits(), data, workers=2, batch_size=3) == evaluate(Logits(), data)


def test_workers_decode_a_folder(tmp_path):
    teacher = load_teacher("digits-resnet20")
    rng = np.random.default_rng(0)
    for i in range(10):
        (tmp_path / str(i)).mkdir()
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(
            tmp_path / f"{i}/x.png"
        )
    here = evaluate(teacher, tmp_path, workers=0, batch_size=4)
    assert evaluate(teacher, tmp_path, workers=2, batch_size=4) == here
    (tmp_path / "4" / "x.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"4/x\.png is not a readable image"):
        evaluate(teacher, tmp_path, workers=2, batch_size=4)


def test_sums_are_fetched_once(monkeypatch):
    fetched = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: (fetched.append(t), original(t))[1])
    evaluate(Logits(), as_dataset([[1, 0]] * 9, [0] * 9), batch_size=2)
    assert [sums.shape for sums in fetched] == [(4,)]


@pytest.mark.cuda
def test_no_batch_waits_for_the_gpu(monkeypatch):
    teacher = load_teacher("digits-resnet20").to("cuda")
    digits = load_dataset("digits", teacher)
    expected = evaluate(teacher, digits)
    sums = _Tally.sums

    def waits(tally):
        torch.cuda.set_sync_debug_mode("default")
        return sums(tally)

    batches = digits.batches

    def prepared(*args, **options):  # the mean and the deviation are sent before the first batch
        made = batches(*args, **options)
        first = next(made)
        torch.cuda.set_sync_debug_mode("error")
        yield first
        yield from made

    monkeypatch.setattr(_Tally, "sums", waits)
    monkeypatch.setattr(digits, "batches", prepared)
    try:
        assert evaluate(teacher, digits, batch_size=64).top1 == expected.top1
    finally:
        torch.cuda.set_sync_debug_mode("default")
