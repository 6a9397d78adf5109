"""Text that is HTML already."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup


def markup(text: str) -> Markup:
    """Mark a text as HTML; what is formatted into it is still escaped."""
    from markupsafe import Markup  # comes with Jinja2

    return Markup(text)
