"""Which file of launch/ suits a machine and a model, and why."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from adde.errors import UserError
from adde.training.batch_size import micro_batch
from adde.training.config import Config

FOR_STATES = 0.5
"""Share of a GPU's memory that weights, gradients and optimiser may take; activations have the
rest."""

FOR_EVALUATION = 0.75
"""The same while whole weights are put together to be evaluated, beside what is cut; activations
have no gradient then."""

FOR_HOST = 0.5
"""Share of the host's memory that may be taken; checkpoints under way and workers have the rest."""

FLOAT = 4
"""Bytes of a weight."""

GB = 1e9


@dataclass(frozen=True)
class Machine:
    """What there is to train on; every node is taken to be like this one."""

    gpus: int
    """On this node."""
    gpu_bytes: int
    """Memory of the smallest of them."""
    host_bytes: int
    nodes: int
    cores: int = 1
    """Of this node that this process may use."""

    @classmethod
    def look(cls, environment: Mapping[str, str] = os.environ) -> "Machine":
        """This machine; the number of nodes from Slurm's or torchrun's environment."""
        gpus = torch.cuda.device_count()
        sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(gpus)]
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cores = len(os.sched_getaffinity(0))
        return cls(gpus, min(sizes, default=0), host, nodes(environment), cores)


@dataclass(frozen=True)
class Choice:
    """A file of launch/, the processes to start over all nodes, and the reasons in sentences."""

    file: str
    processes: int
    why: tuple[str, ...]


def nodes(environment: Mapping[str, str]) -> int:
    """Nodes of this job.

    Raises:
        UserError: a variable is no number.
    """
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_NNODES", "PET_NNODES", "GROUP_WORLD_SIZE"):
        # Elastic jobs say "least:most".
        if found := environment.get(name, "").rpartition(":")[2]:
            if not found.isdecimal():
                raise UserError(f"{name}: expected a number of nodes, found {found!r}")
            return int(found)
    return 1


def bytes_per_parameter(config: Config) -> int:
    """Weights, gradients, the optimiser's state and averaged weights, all float32."""
    moments = 2 if config.optimizer.name == "adamw" else 1
    return FLOAT * (2 + moments + bool(config.optimizer.ema))


def choose(machine: Machine, config: Config, parameters: int) -> Choice:
    """The plainest strategy that fits.

    Raises:
        UserError: no strategy does.
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
        return Choice(file, ranks, (*why, "It fits into each: gradients are averaged, no more."))
    return _choose_cut(machine, config, parameters, ranks, f"{size}: expected", why)


def _choose_cut(
    machine: Machine,
    config: Config,
    parameters: int,
    ranks: int,
    expected: str,
    why: tuple[str, ...],
) -> Choice:
    """For what does not fit into each GPU as a whole; whole weights must, to be evaluated."""
    whole, weights = parameters * bytes_per_parameter(config), FLOAT * parameters
    # In between they, and averaged ones, lie in the host's memory, each rank's own.
    waiting = weights * (1 + bool(config.optimizer.ema)) * ranks // machine.nodes
    cut, offloaded = whole / ranks, whole // machine.nodes + waiting
    room, host = FOR_STATES * machine.gpu_bytes, FOR_HOST * machine.host_bytes
    evaluating = FOR_EVALUATION * machine.gpu_bytes
    beside = f"{weights / GB:.1f} GB of whole weights while it evaluates"
    if ranks > 1 and cut <= room and cut + weights <= evaluating and waiting <= host:
        text = f"It fits only when cut over the ranks: {cut / GB:.1f} GB on each, and {beside}."
        return Choice("fsdp2" if machine.nodes == 1 else "fsdp2_nodes", ranks, (*why, text))
    if weights <= evaluating and offloaded <= host:
        text = (
            "Cut over the ranks it still does not fit: it lies in the host's memory (slow), "
            f"{offloaded / GB:.1f} GB; each GPU has {beside}."
        )
        return Choice("zero3_offload", ranks, (*why, text))
    raise UserError(
        f"{expected} that, cut over {ranks} ranks, to fit beside {beside} into "
        f"{evaluating / GB:.1f} GB of each GPU, or into {host / GB:.1f} GB of the host's memory, "
        f"which has {waiting / GB:.1f} GB of such copies; found neither; use more nodes, GPUs or "
        "hosts with more memory, or a smaller model"
    )


def _ranks(machine: Machine, config: Config) -> tuple[int, tuple[str, ...]]:
    """As many ranks as the recipe's batch can be shared out over, the same on every node."""
    data = config.data
    there = machine.gpus * machine.nodes
    for ranks in range(there, 0, -machine.nodes):
        if data.batch_size % (data.accumulation * ranks) == 0:
            break
    else:
        micro_batch(data, machine.nodes)  # says what would do
        ranks = there
    if ranks == there:
        return ranks, ()
    return ranks, (
        f"The recipe's batch of {data.batch_size} (accumulation {data.accumulation}) cannot be "
        f"shared out over {there} GPUs, but over {ranks}.",
    )


def command(choice: Choice, machine: Machine, recipe: Path) -> str:
    """What to type."""
    many = ""
    if machine.nodes > 1:
        many = (
            f"--num_machines {machine.nodes} --machine_rank RANK_OF_NODE "
            "--main_process_ip FIRST_NODE "
        )
    if choice.file == "zero3_offload":
        # The optimiser's arithmetic is the CPU's, to which accelerate gives a thread a process.
        threads = machine.cores * machine.nodes // choice.processes
        many += f"--num_cpu_threads_per_process {max(1, threads)} "
    return (
        f"accelerate launch --config_file launch/{choice.file}.yaml "
        f"--num_processes {choice.processes} {many}train/main.py --recipe {recipe}"
    )
