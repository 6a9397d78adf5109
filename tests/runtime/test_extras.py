"""Extras: the list in Python, the packages in pyproject.toml, and what people read of them."""

import importlib.metadata
import importlib.util
import re
import sys

import pytest

from synq_fast.errors import MissingExtraError
from synq_fast.ops import _installation as info
from synq_fast.runtime.extras import EXTRAS, missing_modules, needs

DEVELOPERS = {"test", "dev", "docs"}


def packages(extra):
    """Names that an extra of the installed package requires, its own extras left out."""
    wanted = importlib.metadata.requires("synq-fast") or []
    found = (re.fullmatch(r"([\w.-]+).*; .*extra == ['\"]([\w-]+)['\"]", line) for line in wanted)
    return {m[1].lower() for m in found if m and m[2] == extra} - {"synq-fast"}


def test_the_list_has_every_extra_of_users():
    declared = set(importlib.metadata.metadata("synq-fast").get_all("Provides-Extra") or ())
    assert set(EXTRAS) == declared - DEVELOPERS


@pytest.mark.parametrize("extra", EXTRAS)
def test_modules_belong_to_the_packages_of_the_extra(extra):
    """Or to a package that these require themselves."""
    owners = importlib.metadata.packages_distributions()
    declared = packages(extra)
    required = {
        re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("_", "-")
        for name in declared
        for line in importlib.metadata.requires(name) or ()
    }
    for module in EXTRAS[extra].modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
        owned = {name.lower().replace("_", "-") for name in owners[module]}
        assert owned & (declared | required), (module, owned, declared)


def test_what_is_missing_is_said_everywhere(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert missing_modules("report") == ["jinja2"]
    remedy = 'pip install "synq-fast[report]"'
    with pytest.raises(MissingExtraError, match=re.escape(f"a page needs jinja2: {remedy}")):
        needs("report", "a page")
    text = info.render(info.report())
    assert f"{EXTRAS['report'].gives}; lacks jinja2: {remedy}" in text
