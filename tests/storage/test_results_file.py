"""Results that are kept by what they depend on."""

import json
from dataclasses import dataclass

import pytest

from synq_fast.errors import DataError
from synq_fast.storage.results_file import read_results


@dataclass(frozen=True)
class Found:
    fingerprint: str
    value: float


def test_results_by_fingerprint(tmp_path):
    path = tmp_path / "found.json"
    assert read_results(path, "found", Found) == {}
    rows = [{"fingerprint": "a", "value": 1.5}, {"fingerprint": "b", "value": 2.0}]
    path.write_text(json.dumps({"found": rows, "others": []}))
    assert read_results(path, "found", Found) == {"a": Found("a", 1.5), "b": Found("b", 2.0)}
    assert read_results(path, "others", Found) == {}


@pytest.mark.parametrize(
    "text",
    ["{", '{"others": []}', '{"found": [{"value": 1}]}', '{"found": [{"fingerprint": "a"}]}', "[]"],
)
def test_damaged_results(tmp_path, text):
    path = tmp_path / "found.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"found\.json is damaged .*; delete it to run again"):
        read_results(path, "found", Found)
