"""Run each fuzz target briefly."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"


@pytest.mark.slow
def test_damaged_tables_and_lists_give_a_message(tmp_path):
    command = [sys.executable, FUZZ / "tables.py", "--folder", tmp_path, "--rounds", "500"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
