"""Choose the file of launch/ that suits a machine and a model, and say why."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from adde.errors import UserError
from adde.training.batch_size import micro_batch
from adde.training.config import Config

FOR_STATES = 0.5
"""Share of a GPU's memory for weights, gradients and optimiser state; activations take the rest."""

FOR_EVALUATION = 0.75
"""Share of a GPU's memory for full weights beside the shards during an evaluation, when activations
have no gradients."""

FOR_HOST = 0.75
"""Share of the host's memory for full copies, offloaded state and checkpoint buffers; loader
workers and the page cache take the rest."""

FLOAT = 4
"""Bytes of a weight."""

GB = 1e9


@dataclass(frozen=True)
class Machine:
    """Hardware to train on; all nodes are assumed to be like this one."""

    gpus: int
    """On this node."""
    gpu_bytes: int
    """Memory of the smallest GPU."""
    host_bytes: int
    nodes: int
    cores: int = 1
    """CPU cores of this node that this process may use."""

    @classmethod
    def detect(cls, environment: Mapping[str, str] = os.environ) -> "Machine":
        """Describe this machine; the number of nodes is Slurm's or torchrun's."""
        gpus = torch.cuda.device_count()
        sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(gpus)]
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cores = len(os.sched_getaffinity(0))
        return cls(gpus, min(sizes, default=0), host, nodes(environment), cores)


@dataclass(frozen=True)
class Choice:
    """A file of launch/, the number of processes on all nodes, and the reasons as sentences."""

    file: str
    processes: int
    why: tuple[str, ...]


def nodes(environment: Mapping[str, str]) -> int:
    """Read the number of nodes of this job from its environment.

    Raises:
        UserError: a variable is not a number.
    """
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_NNODES", "PET_NNODES", "GROUP_WORLD_SIZE"):
        # Elastic jobs have "min:max".
        if found := environment.get(name, "").rpartition(":")[2]:
            if not found.isdecimal():
                raise UserError(f"{name}: expected a number of nodes, found {found!r}")
            return int(found)
    return 1


def bytes_per_parameter(config: Config) -> int:
    """Bytes of weights, gradients, optimiser state and averaged weights, all float32."""
    return FLOAT + checkpoint_bytes_per_parameter(config)


def checkpoint_bytes_per_parameter(config: Config) -> int:
    """Bytes of a checkpoint: as `bytes_per_parameter`, without gradients."""
    moments = 2 if config.optimizer.name == "adamw" else 1
    return FLOAT * (1 + moments + bool(config.optimizer.ema))


def choose(machine: Machine, config: Config, parameters: int) -> Choice:
    """Choose the simplest strategy that fits.

    Raises:
        UserError: none fits.
    """
    whole = parameters * bytes_per_parameter(config)
    size = f"{parameters / 1e6:.1f} M weights take {whole / GB:.2f} GB with gradients and optimiser"
    if not machine.gpus:
        return Choice("cpu", 1, (f"{size}.", "This machine has no GPU that torch can see."))
    ranks, shared = _ranks(machine, config)
    room = FOR_STATES * machine.gpu_bytes
    gpus = f"{ranks} GPU{'s' if ranks > 1 else ''} of {machine.gpu_bytes / GB:.0f} GB"
    why = (f"{size}; {gpus} leave {room / GB:.1f} GB each for that.", *shared)
    if whole <= room:
        if ranks == 1:
            return Choice("gpu", 1, (*why, "It fits into one GPU."))
        file = "ddp" if machine.nodes == 1 else "ddp_nodes"
        return Choice(file, ranks, (*why, "It fits into each GPU: only gradients are averaged."))
    return _choose_sharded(machine, config, parameters, ranks, f"{size}: expected", why)


def _choose_sharded(
    machine: Machine,
    config: Config,
    parameters: int,
    ranks: int,
    expected: str,
    why: tuple[str, ...],
) -> Choice:
    """Choose a strategy for a model whose states do not fit into one GPU; its weights must, to be
    evaluated.
    """
    whole, weights = parameters * bytes_per_parameter(config), FLOAT * parameters
    # Between evaluations every rank keeps full weights, and averaged ones, in host memory. All
    # ranks together buffer one checkpoint there.
    copies = weights * (1 + bool(config.optimizer.ema)) * ranks // machine.nodes
    copies += checkpoint_bytes_per_parameter(config) * parameters // machine.nodes
    shard, offloaded = whole / ranks, whole // machine.nodes + copies
    room, host = FOR_STATES * machine.gpu_bytes, FOR_HOST * machine.host_bytes
    evaluating = FOR_EVALUATION * machine.gpu_bytes
    full = f"{weights / GB:.1f} GB of full weights during evaluation"
    if ranks > 1 and shard <= room and shard + weights <= evaluating and copies <= host:
        text = f"It fits only when sharded: {shard / GB:.1f} GB on each rank, plus {full}."
        return Choice("fsdp2" if machine.nodes == 1 else "fsdp2_nodes", ranks, (*why, text))
    if weights <= evaluating and offloaded <= host:
        text = (
            "It does not fit even when sharded, so it is offloaded to host memory (slow), "
            f"{offloaded / GB:.1f} GB; each GPU holds {full}."
        )
        return Choice("zero3_offload", ranks, (*why, text))
    raise UserError(
        f"{expected} its shard on each of {ranks} ranks to fit with {full} into "
        f"{evaluating / GB:.1f} GB of GPU memory, or all states into {host / GB:.1f} GB of host "
        f"memory, where full copies and checkpoint buffers take {copies / GB:.1f} GB; found that "
        "neither fits; use more nodes, GPUs or hosts with more memory, or a smaller model"
    )


def _ranks(machine: Machine, config: Config) -> tuple[int, tuple[str, ...]]:
    """Return the most ranks that the recipe's batch divides among, as many on every node."""
    data = config.data
    there = machine.gpus * machine.nodes
    for ranks in range(there, 0, -machine.nodes):
        if data.batch_size % (data.accumulation * ranks) == 0:
            break
    else:
        micro_batch(data, machine.nodes)  # raises, and names what would divide
        ranks = there
    if ranks == there:
        return ranks, ()
    return ranks, (
        f"The recipe's batch of {data.batch_size} (accumulation {data.accumulation}) does not "
        f"divide among {there} GPUs, but it does among {ranks}.",
    )


def command(choice: Choice, machine: Machine, recipe: Path) -> str:
    """Return the shell command that starts the run."""
    many = ""
    if machine.nodes > 1:
        many = (
            f"--num_machines {machine.nodes} --machine_rank RANK_OF_NODE "
            "--main_process_ip FIRST_NODE "
        )
    if choice.file == "zero3_offload":
        # The optimiser runs on the CPU, where accelerate gives each process one thread.
        threads = machine.cores * machine.nodes // choice.processes
        many += f"--num_cpu_threads_per_process {max(1, threads)} "
    return (
        f"accelerate launch --config_file launch/{choice.file}.yaml "
        f"--num_processes {choice.processes} {many}train/main.py --recipe {recipe}"
    )
