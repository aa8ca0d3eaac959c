"""Compare triplet mining with alternatives: time, peak memory, growth with the batch.

    python benchmarks/mining.py --json docs/mining.json --plot docs/mining.png
    python benchmarks/mining.py --quick

Each computes all losses of a training step (12 attributes and the joint label, D = 340), forward
and backward:

* `adde`: this project's `mine`, with the implementation `auto` takes here;
* `cubed`: the same definition with a (B, B, B) tensor, as it is usually implemented;
* `pml`: pytorch-metric-learning's semi-hard miner and triplet loss;
* `gram`: the Gram products and their backward alone, a lower bound;
* `tiled`, on a GPU: `mine` with tiles in place of the kernels.

Contenders are timed in turn in one run and compared by medians; peak memory is measured in a
separate process each. cubed and pml are omitted at large batches, where they exceed the machine's
memory.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from figures import publish
from torch import Tensor

from adde.errors import UserError, run_program
from adde.mining import mine

ATTRIBUTES, WIDTH, VALUES, MARGIN = 12, 340, 10, 0.5
Contender = Literal["adde", "cubed", "pml", "gram", "tiled"]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Batch:
    """Embeddings (G, B, D) and labels (G, B): 12 attributes, then the joint label.

    Four items share each row of labels; embeddings cluster by value, as in training.
    """

    def __init__(self, size: int) -> None:
        draws = torch.Generator().manual_seed(size)
        rows = torch.randint(VALUES, (ATTRIBUTES, max(1, size // 4)), generator=draws)
        joint = torch.randint(rows.shape[1], (size,), generator=draws)
        labels = rows[:, joint]
        means = torch.randn(ATTRIBUTES, VALUES, WIDTH, generator=draws)
        noise = torch.randn(ATTRIBUTES, size, WIDTH, generator=draws)
        at = labels[..., None].expand(-1, -1, WIDTH)
        vectors = torch.nn.functional.normalize(0.3 * means.gather(1, at) + noise, dim=-1)
        whole = torch.nn.functional.normalize(vectors.transpose(0, 1).flatten(1), dim=-1)[None]
        self.groups = [
            (part.to(DEVICE).requires_grad_(), ids.to(DEVICE))
            for part, ids in ((vectors, labels), (whole, joint[None]))
        ]


def adde(vectors: Tensor, labels: Tensor) -> Tensor:
    return mine(vectors, labels, margin=MARGIN).loss_sum.sum()


def tiled(vectors: Tensor, labels: Tensor) -> Tensor:
    return mine(vectors, labels, margin=MARGIN, impl="tiled").loss_sum.sum()


def gram(vectors: Tensor, _: Tensor) -> Tensor:
    return torch.stack([(x @ x.T).sum() for x in vectors]).sum()


def cubed(vectors: Tensor, labels: Tensor) -> Tensor:
    """Compute the loss of all (anchor, positive, negative) at once, group by group."""
    total = vectors.new_zeros(())
    for x, ids in zip(vectors, labels):
        norms = x.square().sum(1)
        distances = norms[:, None] + norms[None, :] - 2 * x @ x.T
        same = ids[:, None] == ids[None, :]
        pair = same & ~torch.eye(len(ids), dtype=torch.bool, device=x.device)
        pair &= (~same).any(1, keepdim=True)
        farther = distances[:, None, :] > distances[:, :, None]
        candidates = distances[:, None, :].where(farther & ~same[:, None, :], torch.inf)
        inside = candidates.amin(2)
        outside = distances.where(~same, -torch.inf).amax(1, keepdim=True)
        hinge = (MARGIN + distances - inside.where(inside < torch.inf, outside)).clamp(min=0)
        total = total + hinge.where(pair, 0).sum()
    return total


def pml(vectors: Tensor, labels: Tensor) -> Tensor:
    from pytorch_metric_learning import distances, losses, miners  # pyright: ignore[reportMissingImports]

    squared = distances.LpDistance(normalize_embeddings=False, power=2)
    miner = miners.TripletMarginMiner(MARGIN, type_of_triplets="semihard", distance=squared)
    loss = losses.TripletMarginLoss(MARGIN, distance=squared)
    parts = [loss(x, ids, miner(x, ids)) for x, ids in zip(vectors, labels)]
    return torch.stack(parts).sum()


CONTENDERS: dict[Contender, Callable[[Tensor, Tensor], Tensor]] = {
    "adde": adde,
    "gram": gram,
    "cubed": cubed,
    "pml": pml,
}
if DEVICE.type == "cuda":
    CONTENDERS["tiled"] = tiled
LARGE: list[Contender] = [name for name in CONTENDERS if name not in ("cubed", "pml")]
"""Contenders whose memory does not grow with the batch's cube."""


def step(contender: Contender, batch: Batch) -> None:
    """Compute all losses, forward and backward."""
    for vectors, labels in batch.groups:
        vectors.grad = None
        CONTENDERS[contender](vectors, labels).backward()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def require_same_loss(batch: Batch) -> None:
    """Check that `adde` and `cubed` compute the same loss."""
    for leaf, labels in batch.groups:
        vectors = leaf.detach()
        ours, theirs = float(adde(vectors, labels)), float(cubed(vectors, labels))
        if abs(ours - theirs) > 1e-5 * abs(theirs):
            raise UserError(f"expected the loss of the definition, {theirs}, found {ours}")


def seconds(size: int, rounds: int, able: Sequence[Contender]) -> dict[Contender, float]:
    """Time the contenders in turn after a warm-up; return median seconds."""
    batch = Batch(size)
    times: dict[Contender, list[float]] = {contender: [] for contender in able}
    for number in range(1 + rounds):
        for contender in able:
            started = time.perf_counter()
            step(contender, batch)
            if number >= 1:
                times[contender].append(time.perf_counter() - started)
    return {contender: statistics.median(values) for contender, values in times.items()}


def peak_gb(contender: Contender, size: int) -> float:
    """Measure the GB that a contender uses beyond its inputs, in its own process."""
    command = [sys.executable, __file__, "--memory-of", contender, "--batch", str(size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{contender} at {size}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def print_memory(contender: Contender, size: int) -> None:
    """Print the GB that a step uses."""
    step(contender, Batch(8))  # exclude what is loaded on first use
    batch = Batch(size)
    if DEVICE.type == "cuda":
        step(contender, batch)  # tuning kernels takes memory of its own
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(contender, batch)
        print((torch.cuda.max_memory_allocated() - before) / 1e9)
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status_kb("VmRSS")
    step(contender, batch)
    print((_status_kb("VmHWM") - before) * 1024 / 1e9)


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def draw(times: dict[int, dict[Contender, float]], path: Path) -> None:
    """Plot seconds against the batch, log-log."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for contender in CONTENDERS:
        points = [(size, t[contender]) for size, t in times.items() if contender in t]
        axes.loglog(*zip(*points), marker="o", label=contender)
        axes.annotate(f" {points[-1][1]:.2g} s", points[-1], fontsize=8)
    axes.set_xticks(list(times), [f"{size:,}" for size in times])
    axes.minorticks_off()
    axes.set_xlabel("batch")
    axes.set_ylabel("seconds, 13 losses, forward and backward")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def benchmark(
    json: Path | None = None,
    plot: Path | None = None,
    quick: bool = False,
    memory_of: Contender | None = None,
    batch: int = 4096,
) -> None:
    """Measure times and peak memory of all contenders.

    Args:
        json: file of the figures; a .jsonl file is appended to.
        plot: file of the picture.
        quick: up to 3 rounds, and the cubic contenders at the smallest batch only.
        memory_of: print only this contender's memory at `batch`, taken in this process.
        batch: see `memory_of`.
    """
    if memory_of is not None:
        print_memory(memory_of, batch)
        return
    require_same_loss(Batch(256))
    rounds = {256: 9, 512: 3, 1024: 5, 2048: 5, 4096: 3}
    if quick:
        rounds = {256: 3, 512: 3, 1024: 3, 2048: 3, 4096: 1}
    if DEVICE.type == "cuda":
        rounds |= {8192: 3, 16384: 3, 32768: 3}
    both = 256 if quick else 512
    times = {
        size: seconds(size, count, list(CONTENDERS) if size <= both else LARGE)
        for size, count in rounds.items()
    }
    print(f"{'batch':>8}" + "".join(f"{c:>12}" for c in CONTENDERS))
    for size, row in times.items():
        cells = [f"{row[c]:>10.4f} s" if c in row else " " * 12 for c in CONTENDERS]
        print(f"{size:>8}" + "".join(cells))
    sizes = [size for size in times if size >= 512]
    growth = np.polyfit(np.log(sizes), np.log([times[size]["adde"] for size in sizes]), 1)[0]
    figures = {
        "speedup_vs_batch_cubed_b256": times[256]["cubed"] / times[256]["adde"],
        "speedup_vs_pml_b256": times[256]["pml"] / times[256]["adde"],
        "ratio_to_gram_b2048": times[2048]["adde"] / times[2048]["gram"],
        "growth_exponent": float(growth),
        **{f"peak_gb_b{size}": peak_gb("adde", size) for size in sizes if size in (4096, 32768)},
        **{f"peak_gb_{c}_b{both}": peak_gb(c, both) for c in CONTENDERS},
        **{f"seconds_{c}_b{size}": t for size, row in times.items() for c, t in row.items()},
    }
    publish(figures, ("torch", "pytorch-metric-learning"), json)
    if plot is not None:
        draw(times, plot)


if __name__ == "__main__":
    import tyro  # not needed by benchmarks/gpu_check.py

    run_program(lambda: tyro.cli(benchmark))
