"""Records of something iterative, a line of JSON each, in a file that survives any kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synq_fast.storage.files import storage_errors, write_text

HistoryRecord = dict[str, Any]
"""``stage``, what else says whose it is, ``step``, and figures."""


class History:
    """A file of records."""

    def __init__(self, path: Path) -> None:
        """Of the file at ``path``, which need not be there yet."""
        self.path = path

    def records(self) -> list[HistoryRecord]:
        """Every record up to the first line that is none: a kill came in the middle of it."""
        return [record for record, _ in self._lines()]

    def read(self, source: Mapping[str, object], last_step: float) -> list[HistoryRecord]:
        """The records of one source up to a step.

        Its later ones, which a resumed run makes again, are dropped; those of others stay.

        Args:
            source: the fields that all its records have, e.g. ``{"stage": "finetune"}``.
            last_step: the last one that is kept.
        """
        if not self.path.exists():
            return []
        kept, own = "", []
        for record, line in self._lines():
            is_own = source.items() <= record.items()
            if is_own and record["step"] <= last_step:
                own.append(record)
            if not is_own or record["step"] <= last_step:
                kept += line + "\n"
        if kept != self.path.read_text(encoding="utf-8"):
            write_text(self.path, kept)
        return own

    def append(self, record: HistoryRecord) -> None:
        """Add one line.

        Raises:
            StorageError: the file cannot be written.
        """
        with storage_errors(self.path), self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")

    def _lines(self) -> list[tuple[HistoryRecord, str]]:
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append((json.loads(line), line))
            except ValueError:
                break  # a kill, or a full disk, in the middle of a write
        return found
