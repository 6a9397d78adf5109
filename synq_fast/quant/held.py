"""Values that follow from parameters alone: computed once per step, used by every pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


# Not generic and no ABC: either would keep a module from becoming one by its ``__class__``.
class Held:
    """Mixin of a module that derives a value from its parameters."""

    _held: Any = None

    @abstractmethod
    def derive(self) -> Any:
        """Compute the value from the present parameters."""

    def value(self) -> Any:
        """The held value inside ``held_weights``, else a new one."""
        return self.derive() if self._held is None else self._held

    def hold(self, value: Any) -> None:
        """Give out ``value`` from now on; None: derive it each time."""
        self._held = value


def holders(*roots: nn.Module) -> list[Held]:
    """The modules that derive something, in a fixed order."""
    return [module for root in roots for module in root.modules() if isinstance(module, Held)]


@contextmanager
def held_weights(*roots: nn.Module) -> Iterator[None]:
    """Derive every value of the modules once and use it for all forward passes inside the block.

    With gradients enabled the held values are part of the graph, so one backward at the end
    reaches the parameters from every pass.
    """
    try:
        for holder in holders(*roots):
            holder.hold(holder.derive())
        yield
    finally:
        for holder in holders(*roots):
            holder.hold(None)
