"""The git state of the code that a run was started with."""

import subprocess
from pathlib import Path
from typing import Any


def git_state(folder: Path = Path(__file__).parent) -> dict[str, Any]:
    """Return `commit`, and whether tracked files differ from it (`dirty`), of a folder's checkout.

    Both are None outside a checkout.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "-uno"))}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git, not a checkout, or one of another user
    return done.stdout.strip()
