"""Programs that only record how they are called."""

import pytest
from launching import Stubs


@pytest.fixture
def stubs(tmp_path):
    """A folder for PATH with programs that record their calls."""
    return Stubs(tmp_path)
