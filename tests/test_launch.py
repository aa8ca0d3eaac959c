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
import pytest
import yaml

from adde.errors import UserError
from adde.training.batch_size import micro_batch
from adde.training.config import Config, Data, Optimizer, parse
from adde.training.stopping import StopSignals
from adde.training.topology import Machine, bytes_per_parameter, choose, command, nodes

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


def test_the_commands_of_the_docs_parse():
    text = (ROOT / "docs" / "scaling.md").read_text() + (LAUNCH / "README.md").read_text()
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]
    commands = [line[line.index("launch") :] for line in lines if line[0] == "accelerate"]
    assert len(commands) == 4
    for found in commands:
        launched(found)
    for name in re.findall(r"launch/[\w/]+\.\w+", text):
        assert (ROOT / name).exists(), name


def documented():
    """Commands of the docs, as words."""
    text = (ROOT / "docs" / "scaling.md").read_text() + (LAUNCH / "README.md").read_text()
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    words = ("python", "accelerate", "torchrun")
    return sorted({line for line in lines if line.partition(" ")[0] in words})


@pytest.mark.parametrize("line", documented())
def test_a_command_of_the_docs_runs(line, tiny_shards, tmp_path):
    words = shlex.split(line)
    run = tmp_path / "runs" / "quickstart"
    run.mkdir(parents=True)
    (run / "log.jsonl").write_text('{"step": 1, "time": 1.0, "lr": 0.5}\n')
    if words[0] != "python":
        # Ranks and machines are the launcher's; what they start is asked what it would take.
        words = ["python", *words[words.index("train/main.py") :], "--help"]
    elif words[1] == "train/search.py":
        words.append("--help")
    elif words[1] == "launch/pick.py":
        words.append(f"--shards={tiny_shards}")
    elif words[1] == "launch/dashboard.py":
        words[words.index("runs/quickstart")] = str(run)
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NETRC": str(tmp_path), "WANDB_API_KEY": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


# Templates

POD = {
    "type": "object",
    "required": ["containers", "volumes", "terminationGracePeriodSeconds"],
    "properties": {
        "terminationGracePeriodSeconds": {"type": "integer", "minimum": 60},
        "restartPolicy": {"enum": ["Never", "OnFailure"]},
        "volumes": {"type": "array", "minItems": 1, "items": {"required": ["name"]}},
        "containers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "required": ["name", "volumeMounts"],
                "properties": {
                    "volumeMounts": {"items": {"required": ["name", "mountPath"]}},
                    "env": {"items": {"required": ["name", "value"]}},
                    "resources": {"required": ["limits"]},
                },
            },
        },
    },
}
REPLICA = {
    "required": ["replicas", "restartPolicy", "template"],
    "properties": {"template": {"required": ["spec"], "properties": {"spec": POD}}},
}


def kind(version, name, spec):
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"const": version},
            "kind": {"const": name},
            "metadata": {"required": ["name"]},
            "spec": spec,
        },
    }


KINDS = {
    "trainjob": kind(
        "trainer.kubeflow.org/v1alpha1",
        "TrainJob",
        {
            "required": ["runtimeRef", "trainer"],
            "additionalProperties": False,
            "properties": {
                "runtimeRef": {"required": ["name"]},
                "trainer": {
                    "additionalProperties": False,
                    "required": ["image", "numNodes", "numProcPerNode", "command", "args"],
                    "properties": {
                        "image": {"type": "string"},
                        "numNodes": {"type": "integer"},
                        "numProcPerNode": {"type": "integer"},
                        "resourcesPerNode": {"required": ["limits"]},
                        "command": {"type": "array"},
                        "args": {"type": "array"},
                    },
                },
                "podTemplateOverrides": {
                    "items": {"required": ["targetJobs", "spec"], "properties": {"spec": POD}}
                },
            },
        },
    ),
    "pytorchjob": kind(
        "kubeflow.org/v1",
        "PyTorchJob",
        {
            "required": ["pytorchReplicaSpecs"],
            "properties": {
                "pytorchReplicaSpecs": {
                    "required": ["Master", "Worker"],
                    "additionalProperties": REPLICA,
                    "properties": {"Master": {"properties": {"replicas": {"const": 1}}}},
                }
            },
        },
    ),
    "jobset": kind(
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
        {
            "required": ["network", "replicatedJobs", "failurePolicy"],
            "properties": {
                "replicatedJobs": {
                    "minItems": 1,
                    "items": {
                        "required": ["name", "replicas", "template"],
                        "properties": {
                            "template": {
                                "properties": {
                                    "spec": {
                                        "required": ["completionMode", "completions", "template"],
                                        "properties": {
                                            "completionMode": {"const": "Indexed"},
                                            "template": {"properties": {"spec": POD}},
                                        },
                                    }
                                }
                            }
                        },
                    },
                }
            },
        },
    ),
}


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


@pytest.mark.parametrize("name", KINDS)
def test_a_kubernetes_template_fits_its_kind_and_starts_the_right_node(name, stubs):
    content = yaml.safe_load((LAUNCH / "kubernetes" / f"{name}.yaml").read_text())
    jsonschema.validate(content, KINDS[name])
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
    found = list(scripts(content))
    assert found
    for script in found:
        subprocess.run(
            ["bash", "-c", script], env={"PATH": stubs.path, **environment}, check=True, cwd=ROOT
        )
    for call in stubs.calls("accelerate"):
        assert "--resume" in call
        options, config = launched(call)
        assert options["max_restarts"] == "3"
        assert options["num_machines"] == "2"
        assert options["num_processes"] == "16"
        assert options["machine_rank"] == "1"
        assert options["main_process_port"] == "29500"
        assert options["main_process_ip"] in ("first", "adde-node-0-0.adde")
        assert config.run == Path("/runs/paper")
    # The first pod's name, as JobSet makes it.
    if name == "jobset":
        job = content["spec"]["replicatedJobs"][0]["name"]
        assert f"{content['metadata']['name']}-{job}-0-0" in found[0]


# srun is given options and a command; a node is this machine.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=1 SLURM_GPUS_ON_NODE=8 exec "$@"
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


def test_slurm_starts_the_nodes_and_requeues_when_told_to_stop(stubs, tmp_path):
    log = str(tmp_path / "calls")
    stubs.add("srun", SRUN)
    stubs.add("scontrol")
    stubs.add("accelerate", WAITING.format(python=sys.executable, log=log))
    stubs.add("pkill", PKILL.format(log=log))
    process = run_slurm(stubs)
    deadline = time.monotonic() + 30
    while not stubs.calls("accelerate"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 0
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


def test_slurm_ends_with_the_training_and_does_not_requeue_a_failure(stubs, tmp_path):
    stubs.add("srun", SRUN)
    stubs.add("scontrol")
    (tmp_path / "calls.stopped").touch()
    stubs.add("accelerate", WAITING.format(python=sys.executable, log=str(tmp_path / "calls")))
    assert run_slurm(stubs).wait(timeout=30) == 1
    assert len(stubs.calls("scontrol")) == 1


SSH = """#!/bin/bash
host=$1; shift
HOST=$host exec bash -c "$*"
"""


def run_hosts(stubs, *hosts):
    return subprocess.run(
        [LAUNCH / "hosts.sh", "ddp_nodes", "4", "train/recipes/paper.toml", "runs/a b", *hosts],
        env={"PATH": stubs.path},
        cwd=ROOT,
        timeout=30,
    )


def test_hosts_are_started_with_their_numbers(stubs):
    stubs.add("ssh", SSH)
    stubs.add("accelerate")
    assert run_hosts(stubs, "n1", "n2", "n3").returncode == 0
    calls = [launched(call) for call in stubs.calls("accelerate")]
    assert sorted(options["machine_rank"] for options, _ in calls) == ["0", "1", "2"]
    for options, config in calls:
        assert options["num_processes"] == "12"
        assert options["max_restarts"] == "3"
        assert options["main_process_ip"] == "n1"
        assert config.run == Path("runs/a b")


def test_a_host_that_fails_takes_the_others_down(stubs, tmp_path):
    stubs.add("ssh", SSH)
    log = str(tmp_path / "calls")
    failing = WAITING.replace(
        "import time", 'import time\nif os.environ["HOST"] == "n2": sys.exit(7)'
    )
    stubs.add("accelerate", failing.format(python=sys.executable, log=log))
    stubs.add("pkill", PKILL.format(log=log))
    assert run_hosts(stubs, "n1", "n2").returncode != 0
    assert "-KILL" in (tmp_path / "calls.stopped").read_text()


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
