"""Compare parts of a training step with their earlier implementations, in turn in one run.

    python benchmarks/step_parts.py --json docs/step_parts.json

* `edits`: drawing stage 3's edits, compared with drawing noise for every item and value on the CPU;
* `mining`: label triplets of all attributes at once, compared with one attribute after the other;
* `buffers`: bytes that data parallelism broadcasts for the prototype memory, compared with a mask
of
  M's size.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from figures import publish
from torch import Tensor

from adde.errors import run_program
from adde.methods.adde.memory import PrototypeMemory
from adde.mining import LabelGrouping, draw_edits, mine
from adde.schema import Attribute, Schema

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def labels_of(items: int, attributes: int, values: int) -> Tensor:
    """Make labels (M, A) int64 in groups of four items that differ in one attribute."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(values, (items // 4, attributes), generator=draws)
    labels = labels.repeat_interleave(4, 0)
    labels[1::4, 0] = (labels[1::4, 0] + 1) % values
    return labels.to(DEVICE)


def edits(items: int, attributes: int, values: int) -> dict[str, float]:
    labels = labels_of(items, attributes, values)
    rows = torch.arange(items, device=DEVICE)
    offsets = values * torch.arange(attributes, device=DEVICE)
    draws, columns = torch.Generator(), attributes * values + 1

    def noise() -> None:
        torch.rand(items, columns, generator=draws).to(DEVICE)

    def edit() -> None:
        draw_edits(labels, labels, rows, 1, offsets)

    times = in_turns({"noise": noise, "edits": edit})
    name = f"m{items}_v{attributes * values}"
    return {
        f"ms_noise_on_the_cpu_{name}": 1e3 * times["noise"],
        f"mb_noise_on_the_cpu_{name}": 4 * items * columns / 1e6,
        f"ms_whole_draw_of_edits_{name}": 1e3 * times["edits"],
    }


def mining(items: int, attributes: int, values: int, width: int) -> dict[str, float]:
    labels = labels_of(items, attributes, values).T.contiguous()
    vectors = torch.randn(attributes, items, width, device=DEVICE)
    vectors = torch.nn.functional.normalize(vectors, dim=-1).requires_grad_()
    own = torch.arange(items, device=DEVICE)

    def step(some: slice, grouping: LabelGrouping | None) -> Tensor:
        part, ids = vectors[some], labels[some]
        return mine(
            part,
            ids,
            refs=part,
            ref_labels=ids,
            self_index=own,
            margin=0.5,
            grouping=grouping,
        ).loss_sum.sum()

    def apart() -> None:
        for number in range(attributes):
            step(slice(number, number + 1), None).backward()

    def together() -> None:
        step(slice(None), LabelGrouping(labels, labels, own)).backward()

    times = in_turns({"apart": apart, "together": together})
    name = f"b{items}_a{attributes}_d{width}"
    return {
        f"ms_one_after_the_other_{name}": 1e3 * times["apart"],
        f"ms_together_{name}": 1e3 * times["together"],
        f"speedup_{name}": times["apart"] / times["together"],
    }


def buffers(attributes: int, values: int, width: int) -> dict[str, float]:
    names = tuple(map(str, range(values)))
    schema = Schema(tuple(Attribute(f"a{number}", names) for number in range(attributes)))
    memory = PrototypeMemory(schema, width)
    name = f"a{attributes}_v{attributes * values}"
    return {
        f"mb_of_buffers_{name}": sum(b.nbytes for b in memory.buffers()) / 1e6,
        f"mb_of_a_mask_{name}": memory.weight.numel() / 1e6,
    }


def in_turns(steps: dict[str, Callable[[], object]], rounds: int = 3) -> dict[str, float]:
    """Run the steps in turn; return median seconds after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(1 + rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def benchmark(json: Path | None = None) -> None:
    """Measure all parts.

    Args:
        json: file of the figures.
    """
    figures = edits(4096, 10, 1000)
    for items in (64, 256):
        figures |= mining(items, 40, 25, 340)
    figures |= mining(64, 8, 8, 32)
    figures |= buffers(40, 240, 340)
    publish(figures, ("torch",), json)


if __name__ == "__main__":
    run_program(lambda: tyro.cli(benchmark))
