"""Server processes for serving.py: this project's, serve_ray.py and serve_litserve.py."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from load import wait_until_up
from stand import ROOT


@dataclass
class Running:
    """A running server: its URL and process."""

    url: str
    process: psutil.Popen
    up_seconds: float

    def groups(self) -> dict[str, Sequence[psutil.Process]]:
        """Return groups of processes with separate CPU times."""
        children = self.process.children(recursive=True)
        return {"client": [psutil.Process()], "decoders": children, "server": [self.process]}

    def processes(self) -> list[psutil.Process]:
        """Return the server's process and its decoders."""
        return _with_children(self.process)

    def rss_mb(self) -> float:
        """Return the RAM of all its processes in MB."""
        return sum(process.memory_info().rss for process in self.processes()) / 1e6


@contextmanager
def _running(folder: Path, program: Sequence[str], ready: str, ask_at: str) -> Iterator[Running]:
    """Run a program on a free --port until the body ends, then send SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log"
    with log.open("w") as output:
        start = time.perf_counter()
        command = [sys.executable, *program, "--port", str(port)]
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(url + ready, process, log)
        yield Running(url + ask_at, process, time.perf_counter() - start)
    finally:
        _end(process)


def _end(process: psutil.Popen) -> None:
    """Send SIGTERM, then SIGKILL to remaining processes (mostly LitServe's children)."""
    if process.poll() is not None:
        return
    every = _with_children(process)
    process.send_signal(signal.SIGTERM)
    for left in psutil.wait_procs(every, timeout=15)[1]:
        left.kill()
    process.wait()


def adde(folder: Path, pair: tuple[Path, Path], *flags: str) -> Any:
    """Run this project's server with default settings and `flags`."""
    words = ["--bundle", str(pair[0]), "--gallery", str(pair[1]), "--drain-seconds", "0", *flags]
    program = [str(ROOT / "serve_onnx" / "server.py"), *words]
    return _running(folder, program, "/readyz", "/v1/embed")


def contender(folder: Path, pair: tuple[Path, Path], name: str) -> Any:
    """Run the server of serve_<name>.py."""
    words = ["--bundle", str(pair[0]), "--gallery", str(pair[1])]
    program = [str(ROOT / "benchmarks" / f"serve_{name}.py"), *words]
    return _running(folder, program, {"ray": "/", "litserve": "/up"}[name], "/")


def _with_children(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]
