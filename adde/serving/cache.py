"""Where what can be made again is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/adde, else ~/.cache/adde: embedded galleries and TensorRT engines."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "adde"
