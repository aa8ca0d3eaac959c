"""Programs that only write down how they are called."""

import pytest
from launching import Stubs


@pytest.fixture
def stubs(tmp_path):
    """A folder for PATH whose programs write down how they are called; and what they wrote."""
    return Stubs(tmp_path)
