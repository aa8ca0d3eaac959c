"""Code shared by all benchmarks: description of the machine, printing and writing of figures."""

import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from adde.files import write_json


def publish(figures: dict[str, Any], packages: tuple[str, ...], path: Path | None) -> None:
    """Print the figures and write them, with machine and versions, as one flat JSON object.

    To a `.jsonl` file they are appended as a line, with the day.
    """
    everything = {**figures, "machine": machine(), "versions": {p: version(p) for p in packages}}
    for name, value in everything.items():
        print(f"{name:36} {value:.4g}" if isinstance(value, float) else f"{name:36} {value}")
    if path is not None and path.suffix == ".jsonl":
        with path.open("a") as lines:
            lines.write(json.dumps({"day": str(datetime.date.today()), **everything}) + "\n")
    elif path is not None:
        write_json(path, everything)


def machine() -> str:
    """Describe processor, cores and GPU."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    if names:
        model = names[0].partition(":")[2].strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, {gpu}"
