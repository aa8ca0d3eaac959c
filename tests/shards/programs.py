"""Run the programs in shards/."""

import subprocess
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parents[2] / "shards"


def command(program, *words):
    return [sys.executable, str(PROGRAMS / program), *map(str, words)]


def run(program, *words, **options):
    return subprocess.run(command(program, *words), capture_output=True, text=True, **options)
