"""Studies of the small network, in a few steps."""

import pytest

import synq_fast
from tests.studies.small import small


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where every study of the session shares its images."""
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="session")
def found(folder) -> dict[str, synq_fast.StudyResult]:
    """Every study, with its files."""
    names = ("overhead", "noise", "cam", "labels", "spectra")
    return {name: small(name, output=folder) for name in names}
