"""The files of launch/, and a stub of `accelerate` that records its calls."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from adde.training.recipes import parse

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
FILES = sorted({path.stem for path in LAUNCH.glob("*.yaml")} - {"ray_serve"})  # Accelerate's

STUB = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""


class Stubs:
    """A folder for PATH with programs that record their calls."""

    def __init__(self, folder):
        self._bin, self._log = folder / "bin", folder / "calls"
        self._bin.mkdir()
        self.path = f"{self._bin}{os.pathsep}{os.environ['PATH']}"

    def add(self, name, script=None):
        """Add a program: `script`, or one that only records its call."""
        path = self._bin / name
        path.write_text(script or STUB.format(python=sys.executable, log=str(self._log)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def calls(self, name):
        """Return the arguments of each call of a program, in order."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [call[1:] for call in map(json.loads, lines) if call[0] == name]


def launched(call):
    """Parse an accelerate call into its topology options and main.py's configuration."""
    assert call[0] == "launch"
    at = call.index("train/main.py")
    options = dict(zip(call[1:at:2], call[2:at:2]))
    file = options.pop("--config_file")
    assert Path(file).stem in FILES
    _, config, _ = parse(call[at + 1 :])
    return {"file": file, **{k.lstrip("-"): v for k, v in options.items()}}, config


def require_usage(script):
    """Check that a script parses, and prints its usage without arguments."""
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    done = subprocess.run(["bash", LAUNCH / script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "usage: " in done.stderr
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", LAUNCH / script], check=True)
