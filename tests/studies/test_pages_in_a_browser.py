"""Pages of studies in a browser: nothing is asked for, everything fits."""

import pytest

from synq_fast.studies import STUDIES
from tests.reporting.browser import browser, check_page, executable

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("name", STUDIES)
def test_page_fits(tab, found, name):
    for width, dark in ((390, False), (1440, True)):
        check_page(tab, found[name].page_path, width, dark)
