"""What more ranks give: measured on 1 and 2 of this machine's, and modelled up to 1,024 GPUs.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py --json scaling.json --plot scaling.png
    python benchmarks/scaling.py --assumptions my_cluster.toml
    python benchmarks/scaling.py --only-model --json scaling.json  # measured figures stay

Measured is train/main.py on the quickstart recipe, as many items per rank on either number. Two
processes that know nothing of each other say what sharing the machine costs by itself; the model
gets that, this machine's gloo, and mining's time, and is held against the two ranks. For GPUs it
gets what scaling.toml assumes, and what roofline.py makes of a step's kernels.
"""

import dataclasses
import json as jsonlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import tyro
from figures import publish
from roofline import Gpu, step_seconds

from adde.errors import run_program
from adde.files import read_json, write_json
from adde.losses import normalise
from adde.methods.adde.model import ADDE
from adde.mining import mine
from adde.schema import Attribute, Schema
from adde.shards.index import ShardIndex
from adde.training.recipes import read_recipe, tomllib

ROOT = Path(__file__).parents[1]
ASSUMPTIONS = ROOT / "benchmarks/scaling.toml"
RECIPE = ROOT / "train/recipes/quickstart.toml"
SIZES = (1, 8, 64, 1024)
SENT = {"ddp": 8, "fsdp2": 12, "zero1": 12, "zero2": 12, "zero3": 12}
"""Bytes that a rank sends per weight and step (docs/scaling.md).

DeepSpeed's stages 1 and 2 all-reduce gradients, then gather weights. Its setting
`use_multi_rank_bucket_allreduce = false` has each rank's part reduced to it alone, 8 in all, but in
as many collectives one after the other as there are ranks.
"""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a step's time depends on besides the recipe; see scaling.toml."""

    ranks_per_node: int
    bandwidth_node: float
    bandwidth_between: float
    latency_node: float
    latency_between: float
    overlap: float
    jitter: float

    def link(self, ranks: int) -> tuple[float, float]:
        """Bytes/s and seconds a hop of the slowest link that a ring over so many ranks has."""
        if ranks <= self.ranks_per_node:
            return self.bandwidth_node, self.latency_node
        return self.bandwidth_between, self.latency_between


@dataclasses.dataclass(frozen=True)
class Work:
    """One rank's share of a step."""

    items: int
    weights: int
    width: int
    """A D."""
    attributes: int
    compute: float
    """Seconds of everything but collectives, mining and loading."""
    backward: float
    """Share of `compute` in the backward pass."""
    mining: float
    """Seconds of mining per item and per column that it is held against."""
    loading: float = 0.0
    """Seconds that its loader takes for the items, while the step before is computed."""


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of a modelled step."""

    compute: float
    mining: float
    gather: float
    gradients: float
    stragglers: float
    loading: float
    """What the items take longer to load than all else."""

    @property
    def total(self) -> float:
        """Of the whole step."""
        return sum(dataclasses.astuple(self))


def predict(work: Work, machine: Machine, ranks: int, sent: int = SENT["ddp"]) -> Step:
    """A step on so many ranks, with as many items on each.

    Collectives are rings: every rank sends (N - 1) / N of the bytes, in N - 1 hops whose latency
    trees cut to log2 N. Embeddings are gathered and their gradients scattered back while nothing
    else can be computed; gradients travel under part of the backward pass. Ranks wait for the
    slowest of them, twice: when embeddings are gathered, and when gradients are.
    """
    mining, gather = _embeddings(work, machine, ranks)
    gradients, stragglers = 0.0, 0.0
    if ranks > 1:
        gradients = _gradients(work, machine, ranks, sent)
        stragglers = _stragglers(work, machine, ranks)
    busy = work.compute + mining + gather + gradients + stragglers
    loading = max(0.0, work.loading - busy)
    return Step(work.compute, mining, gather, gradients, stragglers, loading)


def _gradients(work: Work, machine: Machine, ranks: int, sent: int) -> float:
    """Seconds of weights and gradients that travel longer than the backward pass covers."""
    bandwidth, latency = machine.link(ranks)
    hops = np.log2(ranks) * latency
    share = (ranks - 1) / ranks
    travel = share * sent * work.weights / bandwidth + 2 * hops
    return float(max(hops, travel - machine.overlap * work.backward * work.compute))


def _embeddings(work: Work, machine: Machine, ranks: int) -> tuple[float, float]:
    """Seconds of mining, and of what it gathers: labels, embeddings, their gradients, figures."""
    columns = work.items * ranks
    bandwidth, latency = machine.link(ranks)
    gathered = 2 * 4 * work.width * columns + 8 * work.attributes * columns
    share = (ranks - 1) / ranks
    gather = share * gathered / bandwidth + 6 * np.log2(ranks) * latency
    return work.mining * work.items * columns, float(gather)


def _stragglers(work: Work, machine: Machine, ranks: int, steps: int = 400) -> float:
    """Mean seconds that the slowest of the ranks lacks, over simulated steps."""
    draws = np.random.default_rng(0)
    parts = np.array([1 - work.backward, work.backward]) * work.compute
    # Lognormal: a rank is late by much more often than early.
    spread = np.sqrt(np.log1p(machine.jitter**2))
    late = 0.0
    for part in parts:
        times = part * draws.lognormal(-(spread**2) / 2, spread, (steps, ranks))
        late += float(np.mean(times.max(1))) - part
    return late


def efficiency(work: Work, machine: Machine, ranks: int) -> float:
    """Items/s of so many ranks over so many times those of one."""
    return predict(work, machine, 1).total / predict(work, machine, ranks).total


def limits(work: Work, machine: Machine) -> tuple[float, float]:
    """Numbers of ranks from which the gather, and mining, take longer than all else computed;
    infinity where no 2^20 do.
    """
    found = [float("inf"), float("inf")]
    for power in range(20, 0, -1):
        mining, gather = _embeddings(work, machine, 2**power)
        for place, seconds in enumerate((gather, mining)):
            if seconds > work.compute:
                found[place] = 2.0**power
    return found[0], found[1]


# The recipes on GPUs that are not here


def assumed(path: Path) -> tuple[Machine, dict[str, Work]]:
    """Machine and recipes of an assumptions file."""
    content = tomllib.loads(path.read_text())
    values = content["machine"]
    names = [field.name for field in dataclasses.fields(Machine)]
    machine = Machine(**{name: values[name] for name in names})
    works = {name: _assumed_work(entry, values) for name, entry in content["recipes"].items()}
    return machine, works


def _assumed_work(entry: dict[str, Any], machine: dict[str, Any]) -> Work:
    recipe: Any = read_recipe(ROOT / entry["recipe"])
    settings = recipe.model.without_start_weights()
    count, values = entry["attributes"], entry["values"]
    each = [values // count + (k < values % count) for k in range(count)]
    schema = Schema(
        tuple(
            Attribute(f"a{k}", tuple(f"v{v}" for v in range(size))) for k, size in enumerate(each)
        )
    )
    model = ADDE(settings, schema).to("meta")
    items, side = entry["items_per_gpu"], settings.image_size
    if "seconds_per_item" in entry:
        compute = entry["seconds_per_item"] * items
    else:
        gpu = Gpu(**{field.name: machine[field.name] for field in dataclasses.fields(Gpu)})
        images = torch.zeros(items, side, side, 3, dtype=torch.uint8, device="meta")
        compute = step_seconds(model, images, gpu)
    width = count * settings.width
    # Distances of a pair are 2 A D operations, their gradients twice that; attributes and whole
    # embeddings are both mined.
    mining = 2 * 3 * 2 * width / (machine["flops"] * machine["mining_utilisation"])
    return Work(
        items=items,
        weights=sum(p.numel() for p in model.parameters()),
        width=width,
        attributes=count,
        compute=compute,
        backward=2 / 3,
        mining=mining,
        loading=items / (machine["loader"] * machine["cores"]),
    )


# Measured here


def train(folder: Path, shards: str, ranks: int, apart: bool, steps: int) -> dict[str, float]:
    """Medians over steps of train/main.py: seconds of a step, images/s of all processes, their
    spread within a run, and steps that a checkpoint stalls.

    Args:
        folder: for the runs.
        shards: that are trained on.
        ranks: processes.
        apart: whether each is a run of its own that knows nothing of the others.
        steps: of each run that are looked at, after 10 that are not.
    """
    config = read_recipe(RECIPE)
    size = config.data.batch_size
    words = [f"--recipe={RECIPE}", f"--data.shards={shards}", "--wandb=off"]
    words += ["--checkpoints.every=10", "--evaluation.every-epochs=99", "--batch-norm=local"]
    python = [sys.executable]
    launched = [
        *python,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={ranks}",
        "--",
    ]
    together = ranks > 1 and not apart
    runs = [folder / f"{ranks}-{apart}-{k}" for k in range(1 if together else ranks)]
    words.append(f"--data.batch-size={size * ranks if together else size}")
    processes = [
        subprocess.Popen(
            [*(launched if together else python), "train/main.py", *words, f"--run={run}"],
            cwd=ROOT,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for run in runs
    ]
    try:
        _wait(processes, runs, steps + 10, words)
    finally:
        for process in processes:
            process.terminate()  # torchrun tells its ranks, whose groups are their own
            process.wait()
    lines = [_lines(run)[10 : steps + 10] for run in runs]
    rates = [statistics.median(line["images_per_second"] for line in some) for some in lines]
    # The first run's spread: what one rank's steps differ by.
    seconds = [size * (ranks if together else 1) / line["images_per_second"] for line in lines[0]]
    step = statistics.median(seconds)
    near = [s for s in seconds if s < 2 * step]  # a checkpoint's step is not noise
    stalls = [line["checkpoint_stall"] for some in lines for line in some]
    return {
        "images_per_second": sum(rates),
        "step": step,
        "spread": statistics.pstdev(near) / step,
        "stall_steps": max(stalls) / step,
    }


def _wait(
    processes: list[subprocess.Popen[bytes]], runs: list[Path], steps: int, words: list[str]
) -> None:
    """Until every run has logged so many steps."""
    while True:
        ended = [process for process in processes if process.poll() is not None]
        counts = [len(_lines(run)) for run in runs]  # after poll: a last line is not missed
        if min(counts) >= steps:
            return
        if ended:
            raise RuntimeError(
                f"train/main.py {' '.join(words)}: expected {steps} steps, found {counts} and exit "
                f"status {ended[0].returncode}; run it to see why"
            )
        time.sleep(0.2)


def _lines(run: Path) -> list[dict[str, Any]]:
    log = run / "log.jsonl"
    found = log.read_text().splitlines() if log.exists() else []
    return [jsonlib.loads(line) for line in found if '"lr"' in line and line.endswith("}")]


def measure_gloo() -> tuple[float, float]:
    """Bytes/s that each of 2 local ranks sends, and seconds of a small all-reduce's hop."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue: Any = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_gloo_rank, (port, queue), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return queue.get()


def _gloo_rank(rank: int, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    small, large = torch.zeros(16), torch.zeros(2_000_000)
    seconds: dict[int, float] = {}
    for values in (small, large):
        times: list[float] = []
        for _ in range(20):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(values)
            times.append(time.perf_counter() - started)
        seconds[values.numel()] = statistics.median(times)
    if rank == 0:
        latency = seconds[16] / 2
        # A ring over two sends half the bytes twice.
        queue.put((large.nbytes / max(seconds[large.numel()] - seconds[16], 1e-9), latency))
    dist.destroy_process_group()


def measure_mining(items: int, attributes: int, width: int) -> float:
    """Seconds of mining per item and column, of attributes and whole embeddings, with gradients."""
    embeddings = normalise(torch.randn(attributes, items, width)).requires_grad_()
    labels = torch.randint(0, 8, (attributes, items))
    whole = normalise(torch.randn(1, items, attributes * width)).requires_grad_()
    times: list[float] = []
    for _ in range(12):
        started = time.perf_counter()
        for rows, names in ((embeddings, labels), (whole, labels[:1])):
            mine(rows, names, margin=0.2).loss_sum.sum().backward()
        times.append(time.perf_counter() - started)
    return statistics.median(times) / items**2


def measured(shards: str, quick: bool) -> dict[str, float]:
    """The figures of this machine, and what the model says of them."""
    rounds, steps = (1, 20) if quick else (2, 50)
    kinds = {"1": (1, False), "2_apart": (2, True), "2": (2, False)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, (ranks, apart) in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(train(Path(folder), shards, ranks, apart, steps))
    median = {
        name: {key: statistics.median(some[key] for some in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    config: Any = read_recipe(RECIPE)
    index = ShardIndex.read(shards)
    schema, width = index.schema, config.model.width
    items, attributes = config.data.batch_size, len(schema.sizes)
    mining = measure_mining(items, attributes, width)
    bandwidth, latency = measure_gloo()
    model = ADDE(config.model.without_start_weights(), schema)
    # What sharing this machine costs is no matter of ranks: compute is that of two apart.
    alone = median["2_apart"]["step"]
    work = Work(
        items=items,
        weights=sum(p.numel() for p in model.parameters()),
        width=attributes * width,
        attributes=attributes,
        compute=alone - mining * items**2,
        backward=2 / 3,
        mining=mining,
    )
    # gloo's threads have no core of their own here: gradients do not travel under computation.
    machine = Machine(2, bandwidth, bandwidth, latency, latency, 0.0, median["2_apart"]["spread"])
    step = predict(work, machine, 2)
    rate = {name: values["images_per_second"] for name, values in median.items()}
    return {
        "efficiency_2_ranks": rate["2"] / (2 * rate["1"]),
        "efficiency_2_ranks_predicted": 2 * items / step.total / (2 * rate["1"]),
        "efficiency_2_processes_apart": rate["2_apart"] / (2 * rate["1"]),
        "efficiency_2_ranks_vs_apart": rate["2"] / rate["2_apart"],
        "efficiency_2_ranks_vs_apart_predicted": 2 * items / step.total / rate["2_apart"],
        "checkpoint_stall_steps": max(median["1"]["stall_steps"], median["2"]["stall_steps"]),
        "images_per_second_1_rank": rate["1"],
        "images_per_second_2_ranks": rate["2"],
        "gloo_mb_per_second": bandwidth / 1e6,
        "gloo_latency_us": latency * 1e6,
        "step_spread": median["2_apart"]["spread"],
    }


def modelled(machine: Machine, works: dict[str, Work]) -> dict[str, float]:
    """The model's predictions by name."""
    found: dict[str, float] = {}
    for name, work in works.items():
        found[f"compute_ms_{name}"] = 1e3 * work.compute
        found[f"loading_ms_{name}"] = 1e3 * work.loading
        found[f"images_per_second_{name}_1_gpu"] = work.items / predict(work, machine, 1).total
        for ranks in SIZES[1:]:
            step = predict(work, machine, ranks)
            found[f"efficiency_{name}_{ranks}_gpus"] = efficiency(work, machine, ranks)
            found[f"images_per_second_{name}_{ranks}_gpus"] = work.items * ranks / step.total
            found[f"gather_share_{name}_{ranks}_gpus"] = step.gather / step.total
            share = (ranks - 1) / ranks
            found[f"gathered_mb_{name}_{ranks}_gpus"] = (
                share * 2 * 4 * work.width * work.items * ranks / 1e6
            )
        for strategy, sent in SENT.items():
            found[f"sent_mb_{name}_{strategy}"] = sent * work.weights / 1e6
        gather, mining = limits(work, machine)
        found[f"gather_is_the_limit_{name}_gpus"] = gather
        found[f"mining_is_the_limit_{name}_gpus"] = mining
    return found


def draw(machine: Machine, works: dict[str, Work], figures: dict[str, float], path: Path) -> None:
    """Efficiency by number of GPUs, and what a step's time is made of."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    sizes = [2**k for k in range(11)]
    for name, work in works.items():
        left.plot(sizes, [efficiency(work, machine, n) for n in sizes], "o-", ms=3.5, label=name)
    if "efficiency_2_ranks" in figures:
        found = figures["efficiency_2_ranks_vs_apart"]
        left.plot(2, found, "k*", ms=11, label="2 gloo ranks here, measured")
        predicted = figures["efficiency_2_ranks_vs_apart_predicted"]
        left.plot(2, predicted, "kx", ms=8, label="and predicted")
    left.set_xscale("log", base=2)
    left.set_xticks([1, 8, 64, 1024], ["1", "8", "64", "1,024"])
    left.set(xlabel="GPUs, items per GPU constant", ylabel="efficiency", ylim=(0, 1.05))
    left.legend(frameon=False, fontsize=8)
    parts = [field.name for field in dataclasses.fields(Step)]
    labels = [f"{name.replace('_', chr(10))}\n{n:,}" for name in works for n in SIZES[1:]]
    steps = [predict(work, machine, n) for work in works.values() for n in SIZES[1:]]
    base = np.zeros(len(steps))
    for part in parts:
        heights = np.array([getattr(step, part) / step.total for step in steps])
        right.bar(range(len(steps)), heights, bottom=base, label=part)
        base += heights
    right.set_xticks(range(len(steps)), labels, fontsize=6.5)
    right.set(ylabel="share of a step", ylim=(0, 1))
    right.legend(frameon=False, fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, facecolor="white")


def scale(
    shards: str = "data/wardrobe",
    assumptions: Path = ASSUMPTIONS,
    json: Path | None = None,
    plot: Path | None = None,
    quick: bool = False,
    only_model: bool = False,
) -> None:
    """Prints and writes measured efficiency and the model's predictions.

    Args:
        shards: folder of shards to train on.
        assumptions: file of what is assumed of GPUs.
        json: file of the figures.
        plot: file of the plot.
        quick: one round of fewer steps.
        only_model: measure nothing; figures of the file that were measured stay as they are.
    """
    machine, works = assumed(assumptions)
    predictions = modelled(machine, works)
    if only_model and json is not None and json.exists():
        figures = read_json(json)
        # Every prediction names a recipe, also those that are no longer made.
        for key in [key for key in figures if any(f"_{name}" in key for name in works)]:
            del figures[key]
        about = {key: figures.pop(key) for key in ("machine", "versions")}
        publish(predictions, ("torch", "accelerate"), None)
        write_json(json, {**figures, **predictions, **about})
    else:
        figures = {} if only_model else measured(shards, quick)
        publish({**figures, **predictions}, ("torch", "accelerate"), json)
    if plot is not None:
        draw(machine, works, figures, plot)


if __name__ == "__main__":
    run_program(lambda: tyro.cli(scale))
