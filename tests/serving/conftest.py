"""Sessions and galleries of the tiny bundle, with a cache of the test's own."""

import pytest

from adde.bundle import Bundle
from adde.serving.session import Session


@pytest.fixture(scope="session")
def bundle(tiny_bundle):
    return Bundle.read(tiny_bundle)


@pytest.fixture(scope="session")
def session(bundle):
    return Session(bundle)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder in which galleries are kept during one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adde"
