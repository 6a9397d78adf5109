"""Measuring several things in turn, so that a disturbance of the machine meets all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def in_turns(
    takers: Mapping[str, Callable[[], float]],
    rounds: int,
    after_round: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """What each taker measured in each round; a round begins one taker later than the last.

    Args:
        takers: by name; each does its work once and returns what it measured, e.g. seconds.
        rounds: how often all of them are called.
        after_round: called with the number of rounds done.
    """
    names = list(takers)
    found: dict[str, list[float]] = {name: [] for name in names}
    for done in range(rounds):
        first = done % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(takers[name]())
        if after_round is not None:
            after_round(done + 1)
    return found
