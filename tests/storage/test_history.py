"""Records in a file: what a resumed run makes again is dropped, and nothing else."""

import pytest

from synq_fast.errors import StorageError
from synq_fast.storage.history import History

RECORDS = [
    {"stage": "blocks", "block": "a", "step": 1, "loss": 2.0},
    {"stage": "blocks", "block": "a", "step": 2, "loss": 1.0},
    {"stage": "finetune", "step": 1, "kl": 0.5},
    {"stage": "synthesis", "batch": 3, "step": 10, "classes": 0.25},
]


@pytest.fixture
def history(tmp_path):
    found = History(tmp_path / "log.jsonl")
    assert found.records() == [] and found.read({"stage": "x"}, 9) == []
    for record in RECORDS:
        found.append(record)
    return found


def test_records_come_back(history):
    assert history.records() == RECORDS
    assert history.read({"stage": "synthesis", "batch": 3}, 10) == RECORDS[3:]
    assert history.read({"stage": "synthesis", "batch": 4}, 10) == []
    assert history.records() == RECORDS


def test_later_ones_of_a_source_are_dropped(history):
    assert history.read({"stage": "blocks", "block": "a"}, 1) == RECORDS[:1]
    assert history.records() == [RECORDS[0], *RECORDS[2:]]


def test_a_line_that_was_cut_is_dropped(history):
    with history.path.open("a") as log:
        log.write('{"stage": "fine')
    assert history.records() == RECORDS
    assert history.read({"stage": "finetune"}, 1) == RECORDS[2:3]
    assert history.path.read_text().count("\n") == len(RECORDS)
    assert history.path.read_text().endswith("\n")


def test_folder_that_is_gone(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        History(tmp_path / "gone" / "log.jsonl").append(RECORDS[0])
