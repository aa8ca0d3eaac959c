"""Run the commands of docs/scaling*.md and launch/README.md as far as one machine allows."""

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from accelerate.commands.launch import launch_command_parser
from launching import FILES, LAUNCH, ROOT
from torch.distributed.run import get_args_parser

from adde.errors import UserError
from adde.training.recipes import parse

PAGES = [*sorted((ROOT / "docs").glob("scaling*.md")), LAUNCH / "README.md"]
DOCS = "".join(page.read_text() for page in PAGES)


def documented():
    """Collect the commands of the docs, in lines of their own and within sentences."""
    words = "python|accelerate|torchrun"
    lines = re.findall(rf"^    ((?:{words}) .*)$", DOCS, re.MULTILINE)
    spans = re.findall(r"`((?:sbatch|launch/hosts\.sh|kubectl|pytest) [^`]+)`", DOCS)
    return sorted({*lines, *(" ".join(span.split()) for span in spans)})


def marked(line):
    """Make a command a test parameter, marked by what it imports."""
    return pytest.param(line, marks=[pytest.mark.slow] if line.startswith("pytest") else [])


def test_every_kind_of_command_is_found_in_the_docs():
    assert {line.partition(" ")[0] for line in documented()} == {*TRIES, "launch/hosts.sh"}
    for name in re.findall(r"(?:launch|benchmarks|train|tests)/[\w/]+\.\w+", DOCS):
        assert (ROOT / name).exists(), name


def try_accelerate(words, folder):
    parsed = launch_command_parser().parse_args(words[2:])
    assert words[1] == "launch"
    assert Path(parsed.config_file).stem in FILES
    started(parsed)


def try_torchrun(words, folder):
    started(get_args_parser().parse_args(words[1:]))


def started(parsed):
    """Return the program that a launcher starts, after the launcher's own options."""
    assert parsed.training_script == "train/main.py"
    parse(parsed.training_script_args)


def try_script(words, folder):
    """Check options of sbatch or hosts.sh against the script's."""
    at = words.index(next(word for word in words if word.startswith("launch/")))
    usage = re.search(r"usage: ([^'}]+)", (ROOT / words[at]).read_text())
    assert usage is not None
    names = usage[1].split()
    names = names[names.index(words[at]) + 1 :]
    given = words[at + 1 :]
    assert len(given) >= len(names) if names[-1].endswith("...") else len(given) == len(names)
    for name, word in zip(names, given):
        assert name != "FILE" or word in FILES
        assert name != "GPUS_PER_HOST" or word.isdigit()


def try_kubectl(words, folder):
    assert words[1:3] == ["apply", "-f"]
    (path,) = words[3:]
    assert (ROOT / path).exists()  # test_kubernetes.py checks its content


def try_pytest(words, folder):
    words = [sys.executable, "-m", *words, "--collect-only", "--quiet"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def try_python(words, folder):
    """Run the program in this process, which has already imported torch."""
    if words[1] == "train/search.py":
        try_search(words)
        return
    words = words[1:]
    if words[0] == "launch/pick.py":
        words.append(f"--shards={folder / 'shards'}")
    elif words[0] == "launch/dashboard.py":
        words[words.index("runs/quickstart")] = str(folder)
    sys.argv, printed = words, io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(words[0], run_name="__main__")
    assert printed.getvalue()


def try_search(words):
    """Parse the command and read its sweep file, without running trials."""

    class Begun(Exception):
        pass

    def begin(sweep, folder, seed):
        raise Begun

    search = runpy.run_path(str(ROOT / words[1]))["search"]
    search.__globals__["Search"] = begin
    with pytest.raises(Begun):
        tyro.cli(search, args=words[2:])


TRIES = {
    "accelerate": try_accelerate,
    "torchrun": try_torchrun,
    "sbatch": try_script,
    "kubectl": try_kubectl,
    "pytest": try_pytest,
    "python": try_python,
}


def try_out(line, folder, monkeypatch):
    """Run a command of the docs as far as this machine allows."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [line])  # restored afterwards
    monkeypatch.setenv("NETRC", str(folder / "none"))
    monkeypatch.setenv("WANDB_API_KEY", "")
    words = shlex.split(line)
    TRIES.get(words[0], try_script)(words, folder)


@pytest.mark.parametrize("line", [marked(line) for line in documented()])
def test_a_command_of_the_docs_can_be_typed(line, tiny_shards, tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "time": 1.0, "lr": 0.5}\n')
    (tmp_path / "shards").symlink_to(tiny_shards)
    try_out(line, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "accelerate launch --config_file launch/ddp.yaml --num_procs 4 train/main.py",
        "accelerate launch --config_file launch/ddpp.yaml train/main.py",
        "accelerate launch --config_file launch/ddp.yaml train/main.py --seeed 3",
        "torchrun --nnodes 1:4 --rdzv-backhand c10d train/main.py",
        "torchrun --nnodes 1:4 train/main.py --recipe train/recipes/none.toml",
        "sbatch launch/slurm.sh ddp_nodes RECIPE",
        "sbatch launch/slurm.sh ddp_node RECIPE RUN",
        "launch/hosts.sh ddp_nodes RECIPE RUN node1 node2",
        "kubectl apply -f launch/kubernetes/trainjobs.yaml",
        marked("pytest tests/distributed/test_none.py"),
        "python train/search.py --sweep train/sweeps/none.yaml",
        "python train/search.py --sweep train/sweeps/quickstart.yaml --trails 20",
    ],
)
def test_a_command_that_is_wrong_is_seen(line, tmp_path, monkeypatch):
    with pytest.raises((AssertionError, SystemExit, UserError)):
        try_out(line, tmp_path, monkeypatch)
