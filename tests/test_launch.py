"""launch/: topology and nothing else, a choice of it with reasons, and templates that hold up."""

import dataclasses
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import psutil
import pytest
import tyro
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from adde.errors import UserError
from adde.training.batch_size import micro_batch
from adde.training.config import Config, Data, Optimizer
from adde.training.recipes import parse
from adde.training.resilience.stop_signals import StopSignals
from adde.training.resilience.topology import Machine, bytes_per_parameter, choose, command, nodes

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
FILES = sorted({path.stem for path in LAUNCH.glob("*.yaml")} - {"ray_serve"})  # Accelerate's

TOPOLOGY = {
    "type": "object",
    "required": ["compute_environment", "distributed_type", "num_machines", "num_processes"],
    "additionalProperties": False,
    "properties": {
        "compute_environment": {"const": "LOCAL_MACHINE"},
        "distributed_type": {"enum": ["NO", "MULTI_GPU", "FSDP", "DEEPSPEED"]},
        "mixed_precision": {"const": "no"},  # the recipe's
        "use_cpu": {"type": "boolean"},
        "gpu_ids": {"type": "string"},
        "num_machines": {"type": "integer", "minimum": 1},
        "num_processes": {"type": "integer", "minimum": 1},
        "machine_rank": {"const": 0},
        "main_process_ip": {"type": "string"},
        "main_process_port": {"type": "integer"},
        "rdzv_backend": {"enum": ["static", "c10d"]},
        "same_network": {"type": "boolean"},
        "fsdp_config": {
            "additionalProperties": False,
            "required": ["fsdp_version"],
            "properties": {"fsdp_version": {"const": 2}},
        },
        "deepspeed_config": {
            "additionalProperties": False,
            "required": ["zero_stage", "deepspeed_multinode_launcher"],
            "properties": {
                "zero_stage": {"enum": [1, 2, 3]},
                "deepspeed_multinode_launcher": {"const": "standard"},
                "offload_optimizer_device": {"const": "cpu"},
                "offload_param_device": {"const": "cpu"},
            },
        },
    },
}


@pytest.mark.parametrize("file", FILES)
def test_a_file_says_topology_and_nothing_else(file):
    content = yaml.safe_load((LAUNCH / f"{file}.yaml").read_text())
    jsonschema.validate(content, TOPOLOGY)
    assert (content["num_machines"] > 1) == ("_nodes" in file)
    assert f"`{file}.yaml`" in (LAUNCH / "README.md").read_text()


# The choice


GPU = Machine(gpus=8, gpu_bytes=80 * 10**9, host_bytes=10**12, nodes=1)
LARGE = 4 * 10**9  # weights: 64 GB with gradients and AdamW


@pytest.mark.parametrize(
    ("machine", "parameters", "file", "processes"),
    [
        (Machine(0, 0, 10**10, 1), 10**7, "cpu", 1),
        (Machine(1, 24 * 10**9, 10**11, 1), 10**7, "gpu", 1),
        (Machine(1, 24 * 10**9, 10**11, 1), 10**9, "zero3_offload", 1),
        (GPU, 10**7, "ddp", 8),
        (GPU, LARGE, "fsdp2", 8),
        (GPU, 10 * 10**9, "fsdp2", 8),  # 20 GB cut, and 40 whole to evaluate
        (GPU, 103 * 10**8, "zero3_offload", 8),
        (Machine(2, 80 * 10**9, 10**12, 1), 15 * 10**9, "zero3_offload", 2),
        (Machine(8, 80 * 10**9, 10**12, 4), 10**7, "ddp_nodes", 32),
        (Machine(8, 80 * 10**9, 10**12, 4), LARGE, "fsdp2_nodes", 32),
        (Machine(3, 80 * 10**9, 10**12, 1), 10**7, "ddp", 2),  # 256 / 3 is no number of items
        (Machine(7, 80 * 10**9, 10**12, 2), 10**7, "ddp_nodes", 8),
    ],
)
def test_the_plainest_strategy_that_fits_is_chosen(machine, parameters, file, processes):
    choice = choose(machine, Config(), parameters)
    assert (choice.file, choice.processes) == (file, processes)
    assert choice.file in FILES
    everyone = processes == max(1, machine.gpus) * machine.nodes
    assert everyone == ("cannot be shared out" not in " ".join(choice.why))
    typed = command(choice, machine, Path("r.toml"))
    assert ("--machine_rank" in typed) == (machine.nodes > 1)
    assert ("--num_cpu_threads_per_process" in typed) == (file == "zero3_offload")


def test_an_optimiser_on_the_cpu_has_all_its_cores():
    machine = Machine(8, 80 * 10**9, 10**12, nodes=1, cores=100)
    typed = command(choose(machine, Config(), 103 * 10**8), machine, Path("r.toml"))
    assert "--num_processes 8 --num_cpu_threads_per_process 12 train/main.py" in typed


def test_what_fits_nowhere_is_refused_with_figures():
    with pytest.raises(UserError, match=r"1000000\.0 M weights take 16000\.00 GB .* found neither"):
        choose(GPU, Config(), 10**12)
    # Whole weights do not fit beside anything into a GPU that evaluates; then into the host.
    with pytest.raises(UserError, match=r"120\.0 GB of whole .* into 60\.0 GB of each GPU"):
        choose(dataclasses.replace(GPU, host_bytes=10**14), Config(), 30 * 10**9)
    averaged = Config(optimizer=Optimizer(ema=0.9))
    with pytest.raises(UserError, match=r"500\.0 GB of the host's memory, which has 576\.0 GB"):
        choose(GPU, averaged, 9 * 10**9)
    with pytest.raises(UserError, match="found 256; the nearest is 255, or start 2 ranks"):
        choose(Machine(1, 80 * 10**9, 10**12, nodes=3), Config(), 10**7)


def test_bytes_per_parameter_are_those_of_a_step():
    assert bytes_per_parameter(Config()) == 4 + 4 + 8
    assert bytes_per_parameter(Config(optimizer=Optimizer(name="sgd", ema=0.9))) == 4 + 4 + 4 + 4


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 1),
        ({"SLURM_NNODES": "4"}, 4),
        ({"PET_NNODES": "2:8"}, 8),
        ({"GROUP_WORLD_SIZE": "3"}, 3),
    ],
)
def test_nodes_are_read_from_the_job(environment, expected):
    assert nodes(environment) == expected


def test_pick_prints_a_command_that_parses(tiny_shards, tmp_path, capsys, monkeypatch):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[model]\nbackbone = "test_resnet"\nimage_size = 32\nwidth = 8\nhidden = 8\n')
    monkeypatch.setattr(sys, "argv", ["pick.py", f"--recipe={recipe}", f"--shards={tiny_shards}"])
    runpy.run_path(str(LAUNCH / "pick.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] in {f"launch/{file}.yaml" for file in FILES}
    words = shlex.split(lines[-1])
    assert words[:4] == ["accelerate", "launch", "--config_file", lines[0]]
    parse(words[words.index("train/main.py") + 1 :])


@pytest.mark.parametrize(
    ("size", "accumulation", "ranks", "message"),
    [
        (64, 1, 3, "expected a multiple of 3 .* found 64; the nearest is 63, or start 2 ranks"),
        (64, 4, 5, "multiple of 20 .* the nearest is 60, or start 4 ranks"),
        (
            64,
            3,
            2,
            r"data.accumulation: expected a divisor of data.batch_size \(64\), found 3; .* 2",
        ),
    ],
)
def test_a_batch_that_cannot_be_shared_out_names_the_nearest(size, accumulation, ranks, message):
    with pytest.raises(UserError, match=message):
        micro_batch(Data(batch_size=size, accumulation=accumulation), ranks)


PAGES = [*sorted((ROOT / "docs").glob("scaling*.md")), LAUNCH / "README.md"]
DOCS = "".join(page.read_text() for page in PAGES)


def documented():
    """Commands of the docs: lines of their own, and those within a sentence that can be tried."""
    words = "python|accelerate|torchrun"
    lines = re.findall(rf"^    ((?:{words}) .*)$", DOCS, re.MULTILINE)
    spans = re.findall(r"`((?:sbatch|launch/hosts\.sh|kubectl|pytest) [^`]+)`", DOCS)
    return sorted({*lines, *(" ".join(span.split()) for span in spans)})


def marked(line):
    """A command as a parameter; pytest takes as long as what its tests import."""
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
    """What a launcher is to start, whose own parser has taken the words before it."""
    assert parsed.training_script == "train/main.py"
    parse(parsed.training_script_args)


def try_script(words, folder):
    """sbatch's or hosts.sh's words against what the script says of its own."""
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
    assert (ROOT / path).exists()
    assert Path(path).stem in TEMPLATES  # which are looked at below


def try_pytest(words, folder):
    run_python("-m", *words, "--collect-only", "--quiet")


def try_python(words, folder):
    if words[1] == "train/search.py":
        return try_search(words)
    words = list(words)
    if words[1] == "launch/pick.py":
        words.append(f"--shards={folder / 'shards'}")
    elif words[1] == "launch/dashboard.py":
        words[words.index("runs/quickstart")] = str(folder)
    return run_python(*words[1:], NETRC=str(folder / "none"), WANDB_API_KEY="")


def run_python(*words, **environment):
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def try_search(words):
    """All but the trials: the line is parsed, and its sweep file read."""

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
    """Runs a command of the docs as far as one can without its machines."""
    monkeypatch.chdir(ROOT)
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


# Templates


def fields(required="", **properties):
    """An object of these fields and no other, as the API server takes it (strict validation)."""
    return {
        "type": "object",
        "required": required.split(),
        "additionalProperties": False,
        "properties": properties,
    }


def each(items):
    return {"type": "array", "minItems": 1, "items": items}


# Of what each kind may have, as far as the templates use it: kubeflow/trainer
# pkg/apis/trainer/v1alpha1 (v2.2), kubeflow/training-operator pkg/apis/kubeflow.org/v1,
# kubernetes-sigs/jobset api/jobset/v1alpha2, and core/v1.
TEXT, NUMBER, MAP = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}
ENV = each(fields("name value", name=TEXT, value=TEXT))
RESOURCES = fields(limits=MAP, requests=MAP)
CONTAINER = fields(
    "name image volumeMounts",
    name=TEXT,
    image=TEXT,
    resources=RESOURCES,
    env=ENV,
    command=each(TEXT),
    args=each(TEXT),
    volumeMounts=each(fields("name mountPath", name=TEXT, mountPath=TEXT)),
)
POD = fields(
    "containers volumes terminationGracePeriodSeconds",
    terminationGracePeriodSeconds={"type": "integer", "minimum": 60},
    restartPolicy={"enum": ["Never", "OnFailure"]},
    volumes=each(
        fields(
            "name",
            name=TEXT,
            persistentVolumeClaim=fields("claimName", claimName=TEXT),
            emptyDir=fields(medium={"const": "Memory"}),
        )
    ),
    containers=each(CONTAINER),
)
JOB = fields(
    "template",
    completionMode={"const": "Indexed"},
    completions=NUMBER,
    parallelism=NUMBER,
    backoffLimit=NUMBER,
    template=fields("spec", spec=POD),
)
JOBSET = fields(
    "replicatedJobs failurePolicy",
    network=fields(enableDNSHostnames={"type": "boolean"}),
    failurePolicy=fields(maxRestarts=NUMBER),
    replicatedJobs=each(
        fields(
            "name template",
            name=TEXT,
            replicas=NUMBER,
            template=fields("spec", metadata=fields(labels=MAP), spec=JOB),
        )
    ),
)
REPLICA = fields(
    "replicas restartPolicy template",
    replicas=NUMBER,
    restartPolicy={"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
    template=fields("spec", spec=POD),
)


def kind(version, name, spec):
    return fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": version},
        kind={"const": name},
        metadata=fields("name", name=TEXT),
        spec=spec,
    )


KINDS = {
    "TrainingRuntime": kind(
        "trainer.kubeflow.org/v1alpha1",
        "TrainingRuntime",
        fields(
            "mlPolicy template",
            mlPolicy=fields(numNodes=NUMBER, torch=fields()),
            template=fields("spec", spec=JOBSET),
        ),
    ),
    "TrainJob": kind(
        "trainer.kubeflow.org/v1alpha1",
        "TrainJob",
        fields(
            "runtimeRef trainer",
            runtimeRef=fields("name", name=TEXT, kind=TEXT, apiGroup=TEXT),
            trainer=fields(
                image=TEXT,
                numNodes=NUMBER,
                numProcPerNode=NUMBER,
                resourcesPerNode=RESOURCES,
                env=ENV,
                command=each(TEXT),
                args=each(TEXT),
            ),
        ),
    ),
    "PyTorchJob": kind(
        "kubeflow.org/v1",
        "PyTorchJob",
        fields("pytorchReplicaSpecs", pytorchReplicaSpecs=fields(Master=REPLICA, Worker=REPLICA)),
    ),
    "JobSet": kind("jobset.x-k8s.io/v1alpha2", "JobSet", JOBSET),
}
TEMPLATES = ["trainjob", "pytorchjob", "jobset"]


def read_template(name):
    return list(yaml.safe_load_all((LAUNCH / "kubernetes" / f"{name}.yaml").read_text()))


def found(value, key):
    """All that a nested value has under a key."""
    if isinstance(value, dict):
        yield from [value[key]] if key in value else []
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from found(part, key)


def scripts(value):
    """The shell lines of a template's containers."""
    if isinstance(value, dict):
        if value.get("command") == ["bash", "-c"]:
            yield value["args"][0]
        for part in value.values():
            yield from scripts(part)
    elif isinstance(value, list):
        for part in value:
            yield from scripts(part)


STUB = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""


@pytest.fixture
def stubs(tmp_path):
    """A folder for PATH whose programs write down how they are called; and what they wrote."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "calls"

    def add(name, script=None):
        path = folder / name
        path.write_text(script or STUB.format(python=sys.executable, log=str(log)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def calls(name):
        lines = log.read_text().splitlines() if log.exists() else []
        return [call[1:] for call in map(json.loads, lines) if call[0] == name]

    return SimpleStubs(folder, add, calls)


class SimpleStubs:
    def __init__(self, folder, add, calls):
        self.path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        self.add, self.calls = add, calls


def launched(call):
    """An accelerate call: its topology options, and the configuration that main.py would take."""
    assert call[0] == "launch"
    at = call.index("train/main.py")
    options = dict(zip(call[1:at:2], call[2:at:2]))
    file = options.pop("--config_file")
    assert Path(file).stem in FILES
    config, _ = parse(call[at + 1 :])
    return {"file": file, **{k.lstrip("-"): v for k, v in options.items()}}, config


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_kubernetes_template_fits_its_kinds(name):
    documents = read_template(name)
    for document in documents:
        jsonschema.validate(document, KINDS[document["kind"]])
    # Launchers let their ranks stop for nearly as long as the pod has.
    (grace,) = set(found(documents, "terminationGracePeriodSeconds"))
    variables = {v["name"]: v["value"] for env in found(documents, "env") for v in env}
    assert grace - 60 <= int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < grace
    mounted = {mount["name"] for mounts in found(documents, "volumeMounts") for mount in mounts}
    assert mounted == {one["name"] for volumes in found(documents, "volumes") for one in volumes}


def test_the_trainjob_runs_its_own_runtime():
    runtime, job = read_template("trainjob")
    assert job["spec"]["runtimeRef"] == {"kind": runtime["kind"], **runtime["metadata"]}
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    labels = node["template"]["metadata"]["labels"]
    assert labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_kubernetes_template_starts_the_right_node(name, stubs):
    content = read_template(name)
    stubs.add("accelerate")
    environment = {
        "trainjob": {
            **{"PET_NNODES": "2", "PET_NPROC_PER_NODE": "8", "PET_NODE_RANK": "1"},
            **{"PET_MASTER_ADDR": "first", "PET_MASTER_PORT": "29500"},
        },
        "pytorchjob": {
            **{"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}
        },
        "jobset": {"NODES": "2", "JOB_COMPLETION_INDEX": "1"},
    }[name]
    lines = list(scripts(content))
    assert lines
    for script in lines:
        subprocess.run(
            ["bash", "-c", script], env={"PATH": stubs.path, **environment}, check=True, cwd=ROOT
        )
    for call in stubs.calls("accelerate"):
        assert "--resume" in call
        options, config = launched(call)
        # Else a stop would end with 0, and the job would be taken for done.
        assert options["max_restarts"] == "0"
        assert options["num_machines"] == "2"
        assert options["num_processes"] == "16"
        assert options["machine_rank"] == "1"
        assert options["main_process_port"] == "29500"
        assert options["main_process_ip"] in ("first", "adde-node-0-0.adde")
        assert config.run == Path("/runs/paper")
    # The first pod's name, as JobSet makes it.
    if name == "jobset":
        (jobset,) = content
        job = jobset["spec"]["replicatedJobs"][0]["name"]
        assert f"{jobset['metadata']['name']}-{job}-0-0" in lines[0]


# srun is given options and a command; a node is this machine.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >> {log}.srun; shift; done
SLURM_NODEID=1 SLURM_GPUS_ON_NODE=8 exec "$@"
"""
# As timeout, but after a second.
TIMEOUT = """#!/bin/bash
echo "$1" > {log}.timeout
exec {timeout} 1 "${{@:2}}"
"""
# As accelerate, whose ranks save and end when they get SIGUSR1.
WAITING = (
    STUB
    + """
import time
while not os.path.exists({log!r} + ".stopped"):
    time.sleep(0.05)
sys.exit(1)
"""
)
PKILL = """#!/bin/bash
echo "$@" > {log}.stopped
"""


def run_slurm(stubs, **popen):
    environment = {
        "PATH": stubs.path,
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "4711",
    }
    arguments = ["ddp_nodes", "train/recipes/paper.toml", "runs/a b"]
    return subprocess.Popen(
        ["bash", LAUNCH / "slurm.sh", *arguments], env=environment, cwd=ROOT, **popen
    )


def start_slurm(stubs, log, **popen):
    stubs.add("srun", SRUN.format(log=log))
    stubs.add("scontrol")
    stubs.add("accelerate", WAITING.format(python=sys.executable, log=log))
    process = run_slurm(stubs, **popen)
    deadline = time.monotonic() + 30
    while not stubs.calls("accelerate"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_slurm_starts_the_nodes_and_requeues_when_told_to_stop(stubs, tmp_path):
    log = str(tmp_path / "calls")
    stubs.add("pkill", PKILL.format(log=log))
    process = start_slurm(stubs, log)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 0
    assert "--kill-on-bad-exit=1" in Path(f"{log}.srun").read_text()
    options, config = launched(stubs.calls("accelerate")[0])
    assert options == {
        "file": "launch/ddp_nodes.yaml",
        "num_machines": "2",
        "num_processes": "16",
        "machine_rank": "1",
        "main_process_ip": "",
        "main_process_port": "24711",
        "max_restarts": "3",
    }
    assert config.run == Path("runs/a b")
    assert stubs.calls("scontrol") == [["show", "hostnames", "n[1-2]"], ["requeue", "4711"]]
    assert "-USR1" in (tmp_path / "calls.stopped").read_text()


def test_slurm_requeues_what_does_not_stop_in_time(stubs, tmp_path):
    log = str(tmp_path / "calls")
    stubs.add("pkill", PKILL.format(log=f"{log}.unheard"))
    stubs.add("timeout", TIMEOUT.format(log=log, timeout=shutil.which("timeout")))
    process = start_slurm(stubs, log, start_new_session=True)
    process.send_signal(signal.SIGUSR1)
    try:
        assert process.wait(timeout=30) == 0
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert stubs.calls("scontrol")[-1] == ["requeue", "4711"]
    told = int(re.search(r"USR1@(\d+)", (LAUNCH / "slurm.sh").read_text())[1])
    assert int(Path(f"{log}.timeout").read_text()) < told


def test_slurm_ends_with_the_training_and_does_not_requeue_a_failure(stubs, tmp_path):
    stubs.add("srun", SRUN.format(log=tmp_path / "calls"))
    stubs.add("scontrol")
    (tmp_path / "calls.stopped").touch()
    stubs.add("accelerate", WAITING.format(python=sys.executable, log=str(tmp_path / "calls")))
    assert run_slurm(stubs).wait(timeout=30) == 1
    assert len(stubs.calls("scontrol")) == 1


SSH = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
host=$1; shift
HOST=$host exec bash -c "$*"
"""
# As torch's launcher while it waits for the other hosts: no signal but KILL ends it. It starts a
# rank that was killed again. On the host `failing` it fails once the other's rank is there.
LAUNCHER = (
    STUB
    + """
import signal, subprocess, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
if os.environ["HOST"] == {failing!r}:
    while not os.path.exists({log!r} + ".ranks"):
        time.sleep(0.05)
    sys.exit(7)
while True:
    subprocess.run([sys.executable, {log!r} + ".py"])
"""
)
RANK = """
import signal
def write(name):
    with open({log!r} + name, "a") as file:
        file.write("one ")
signal.signal(signal.SIGUSR1, lambda *_: write(".stopped"))
write(".ranks")
while True:
    signal.pause()
"""


def run_hosts(stubs, *hosts):
    return subprocess.Popen(
        [LAUNCH / "hosts.sh", "ddp_nodes", "4", "train/recipes/paper.toml", "runs/a b", *hosts],
        env={"PATH": stubs.path, "PORT": "61234"},
        cwd=ROOT,
    )


def test_hosts_are_started_with_their_numbers(stubs):
    stubs.add("ssh", SSH)
    stubs.add("accelerate")
    assert run_hosts(stubs, "n1", "n2", "n3").wait(timeout=30) == 0
    calls = [launched(call) for call in stubs.calls("accelerate")]
    assert sorted(options["machine_rank"] for options, _ in calls) == ["0", "1", "2"]
    for options, config in calls:
        assert options["num_processes"] == "12"
        assert options["max_restarts"] == "3"
        assert options["main_process_ip"] == "n1"
        assert config.run == Path("runs/a b")


@pytest.fixture
def hosts(stubs, tmp_path):
    """Starts two of them; then waits for words in a log; in the end nothing may be left over."""
    log = str(tmp_path / "calls")
    stubs.add("ssh", SSH)
    Path(f"{log}.py").write_text(RANK.format(log=log))
    started = []

    def start(failing=""):
        stubs.add("accelerate", LAUNCHER.format(python=sys.executable, log=log, failing=failing))
        started.append(run_hosts(stubs, "n1", "n2"))
        return started[0]

    def wait_for(name, words):
        deadline = time.monotonic() + 60
        path = Path(f"{log}.{name}")
        while not path.exists() or len(path.read_text().split()) < words:
            assert started[0].poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    yield start, wait_for
    started[0].kill()
    own = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    for process in own:
        process.kill()
    assert not own


def test_a_host_that_fails_takes_the_others_down(hosts):
    start, _ = hosts
    assert start(failing="n2").wait(timeout=60) != 0


def test_ctrl_c_stops_the_ranks_of_all_hosts_and_once_more_ends_them(hosts):
    start, wait_for = hosts
    process = start()
    wait_for("ranks", 2)
    process.send_signal(signal.SIGTERM)  # as Ctrl-C, which a background job ignores
    wait_for("stopped", 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0


@pytest.mark.parametrize("script", ["slurm.sh", "hosts.sh"])
def test_a_script_parses_and_says_how_it_is_used(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    done = subprocess.run(["bash", LAUNCH / script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "usage: " in done.stderr
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", LAUNCH / script], check=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_and_the_handlers_put_back(number):
    before = signal.getsignal(number)
    stop = StopSignals()
    signal.raise_signal(number)
    assert stop.signal == number
    assert signal.getsignal(number) == before
