"""Programs of this checkout as processes.

Importing torch, timm and accelerate takes a process longer than most of these programs run. They
are therefore forked from a server that has imported them, one for each process of pytest.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import traceback
import warnings
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
IMPORTED = ["accelerate", "adde.training.run", "tests.programs"]

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(IMPORTED)


def start(*words, **environment):
    """Start a program on the CPU, with one thread, so that sums are made in one order.

    It sees the environment of the tests with `environment` added.
    """
    return Program([str(word) for word in words], {**os.environ, **ENVIRONMENT, **environment})


def finish(process, status=0):
    """Return the output of a program that ends with `status`."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


class Program:
    """A program with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, words, environment):
        reader, writer = _forks.Pipe(duplex=False)
        self._process = _forks.Process(target=_run, args=(words, environment, writer))
        before = {name: os.environ.get(name) for name in ENVIRONMENT}
        os.environ.update(ENVIRONMENT)  # the server reads them when it starts
        try:
            self._process.start()
        finally:
            os.environ.update({name: value for name, value in before.items() if value is not None})
            for name in (name for name, value in before.items() if value is None):
                del os.environ[name]
        writer.close()
        self.args, self.pid = words, self._process.pid
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """Return (output, None); the output ends when the last process that has it ends."""
        found = b""
        while wait([self.stdout], timeout):
            part = os.read(self.stdout.fileno(), 1 << 16)
            if not part:
                break
            found += part
        else:
            raise subprocess.TimeoutExpired(self.args, timeout, found)
        self.stdout.close()
        self.wait(timeout)
        return found.decode(), None

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self._process.kill()


def _run(words, environment, output):
    """Be the program, in a fork of the server."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    # The server's own streams were opened on files of another kind.
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", 1, "utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    warnings.simplefilter(environment.get("PYTHONWARNINGS", "ignore"))
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path[0:0] = [str((ROOT / words[0]).parent)]
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit:
        raise
    except BaseException:  # as an interpreter ends
        traceback.print_exc()
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
