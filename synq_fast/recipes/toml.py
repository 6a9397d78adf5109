"""Writing TOML: tables of the plain values that a recipe holds."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

_ESCAPES = {"\b": "\\b", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def dumps(table: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """The table as TOML 1.0, which the standard library only reads.

    Args:
        table: booleans, numbers, texts, lists of these and further tables, by keys of letters,
            digits, ``_`` and ``-``.
        comments: what to write above a value or a table, by its dotted key.

    Raises:
        TypeError: a value of another type.
    """
    return "\n".join(_tables(table, "", comments or {}))


def _tables(table: Mapping[str, Any], name: str, comments: Mapping[str, str]) -> Iterator[str]:
    """Each table's own lines as one text, the table before those inside it."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    prefix = f"{name}." if name else ""
    lines = [
        f"{_comment(comments, prefix + key)}{key} = {_value(table[key])}\n"
        for key in table
        if key not in inner
    ]
    if lines or (name and not inner):
        yield (f"{_comment(comments, name)}[{name}]\n" if name else "") + "".join(lines)
    for key, value in inner.items():
        yield from _tables(value, prefix + key, comments)


def _comment(comments: Mapping[str, str], key: str) -> str:
    lines = textwrap.wrap(comments.get(key, ""), 96)
    return "".join(f"# {line}\n" for line in lines)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(map(_character, value)) + '"'
    if isinstance(value, list | tuple):
        return "[\n" + "".join(f"    {_value(v)},\n" for v in value) + "]" if value else "[]"
    raise TypeError(f"TOML is written from plain values alone, got {type(value).__name__}")


def _character(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    control = character != "\t" and (character < " " or character == "\x7f")
    return f"\\u{ord(character):04x}" if control else character
