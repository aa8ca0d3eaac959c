"""launch/pick.py chooses the simplest strategy that fits."""

import dataclasses
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from launching import FILES, LAUNCH

from adde.errors import UserError
from adde.training.config import Config, Optimizer
from adde.training.recipes import parse
from adde.training.resilience.topology import Machine, bytes_per_parameter, choose, command, nodes

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
        (GPU, 10 * 10**9, "fsdp2", 8),  # shards of 20 GB, and 40 GB of full weights
        (GPU, 103 * 10**8, "zero3_offload", 8),
        (Machine(2, 80 * 10**9, 10**12, 1), 15 * 10**9, "zero3_offload", 2),
        (Machine(8, 80 * 10**9, 10**12, 4), 10**7, "ddp_nodes", 32),
        (Machine(8, 80 * 10**9, 10**12, 4), LARGE, "fsdp2_nodes", 32),
        (Machine(3, 80 * 10**9, 10**12, 1), 10**7, "ddp", 2),  # 3 does not divide 256
        (Machine(7, 80 * 10**9, 10**12, 2), 10**7, "ddp_nodes", 8),
    ],
)
def test_the_plainest_strategy_that_fits_is_chosen(machine, parameters, file, processes):
    choice = choose(machine, Config(), parameters)
    assert (choice.file, choice.processes) == (file, processes)
    assert choice.file in FILES
    everyone = processes == max(1, machine.gpus) * machine.nodes
    assert everyone == ("does not divide among" not in " ".join(choice.why))
    typed = command(choice, machine, Path("r.toml"))
    assert ("--machine_rank" in typed) == (machine.nodes > 1)
    assert ("--num_cpu_threads_per_process" in typed) == (file == "zero3_offload")


def test_an_optimiser_on_the_cpu_has_all_its_cores():
    machine = Machine(8, 80 * 10**9, 10**12, nodes=1, cores=100)
    typed = command(choose(machine, Config(), 103 * 10**8), machine, Path("r.toml"))
    assert "--num_processes 8 --num_cpu_threads_per_process 12 train/main.py" in typed


def test_what_fits_nowhere_is_refused_with_figures():
    with pytest.raises(
        UserError, match=r"1000000\.0 M weights take 16000\.00 GB .* found that neither fits"
    ):
        choose(GPU, Config(), 10**12)
    # Full weights fit neither into a GPU during evaluation, nor into the host.
    with pytest.raises(UserError, match=r"120\.0 GB of full .* into 60\.0 GB of GPU memory"):
        choose(dataclasses.replace(GPU, host_bytes=10**14), Config(), 30 * 10**9)
    averaged = Config(optimizer=Optimizer(ema=0.9))
    # 36 GB of weights, twice on each of 8 ranks, and a checkpoint of 4 x 36 GB.
    message = r"675\.0 GB of host memory, where .* take 720\.0 GB"
    with pytest.raises(UserError, match=message):
        choose(dataclasses.replace(GPU, host_bytes=9 * 10**11), averaged, 9 * 10**9)
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
