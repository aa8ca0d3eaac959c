"""Evaluation of a Glow: likelihood, attribute directions, and pictures."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from adde.distributed import sum_over_ranks
from adde.methods.glow.directions import Regression, edited
from adde.methods.glow.model import Glow, bits_per_dimension
from adde.methods.pictures import line, share_items, spread_items
from adde.mining.distances import full_precision
from adde.schema import UNKNOWN, Schema
from adde.shards.index import ShardIndex
from adde.training.evaluation import Evaluator
from adde.training.watching.displays import PictureRow

SHOWN = 10
"""Most pictures of a line."""

TEMPERATURES = (0.5, 0.7, 0.9, 1.0)
"""Deviations of the latents of samples."""

CHUNK = 64
"""Items read and encoded at a time."""


def noise_of(rows: Tensor, side: int) -> Tensor:
    """Draw the same noise (n, 3, S, S) for an item's row (n,) wherever it is encoded."""
    shape = (3, side, side)
    drawn = [
        torch.rand(shape, generator=torch.Generator().manual_seed(row)) for row in rows.tolist()
    ]
    return torch.stack(drawn) if drawn else torch.empty(0, *shape)


@torch.no_grad()
def likelihood(
    model: Glow, evaluator: Evaluator, split: str, ridge: float
) -> tuple[dict[str, float], Tensor]:
    """Compute the likelihood of a split, and directions (V, D) from the same latents.

    Figures are `bits_per_dim`, and `log_likelihood` in nats of a picture, which is larger if the
    model is better.
    """
    schema, side = evaluator.index.schema, model.preprocess.size
    regression = Regression(schema, model.dimensions, evaluator.device)
    sums = torch.zeros(2, dtype=torch.float64, device=evaluator.device)
    for batch, rows in evaluator.batches(model, split):
        with full_precision(batch.images):
            noise = noise_of(rows, side).to(batch.images.device)
            latents, out = model.flow(model.scaled(batch.images, noise))
        bits = bits_per_dimension(out, model.bits, model.dimensions).double()
        sums += torch.stack([bits.sum(), bits.new_tensor(float(len(bits)))])
        regression.add(latents, batch.labels)
    total, items = sum_over_ranks(sums).tolist()
    bits = total / items
    nats = -bits * model.dimensions * math.log(2)
    return {"bits_per_dim": bits, "log_likelihood": nats}, regression.solve(ridge)


@torch.no_grad()
def start(model: Glow, index: ShardIndex, count: int) -> None:
    """Start the activation norms from `count` training items; on all ranks."""
    count = min(count, index.count("train"))
    _, rows = share_items(count)
    images, _ = spread_items(model.preprocess, index, "train", count, rows)
    device = next(model.parameters()).device
    noise = noise_of(torch.arange(count)[rows], model.preprocess.size)
    with full_precision(images):
        model.flow.start(model.scaled(images.to(device), noise.to(device)))


@torch.no_grad()
def directions_of(model: Glow, index: ShardIndex, count: int, ridge: float) -> Tensor:
    """Compute directions (V, D) from `count` training items; on all ranks."""
    device = next(model.parameters()).device
    regression = Regression(index.schema, model.dimensions, device)
    count = min(count, index.count("train"))
    _, own = share_items(count)
    for first in range(own.start, own.stop, CHUNK):
        rows = slice(first, min(first + CHUNK, own.stop))
        images, labels = spread_items(model.preprocess, index, "train", count, rows)
        with full_precision(images):
            regression.add(model.encode(images.to(device)), labels.to(device))
    return regression.solve(ridge)


@torch.no_grad()
def picture_rows(
    model: Glow, directions: Tensor, index: ShardIndex, split: str, rows: int
) -> list[PictureRow]:
    """Show reconstructions, samples, and up to `rows` - 2 items moved along directions."""
    if not rows:
        return []
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    images, labels = (
        part.to(device) for part in spread_items(model.preprocess, index, split, SHOWN)
    )
    with full_precision(images):
        latents = model.encode(images)
        originals = line((model.scaled(images, 0.0) + 0.5) * 2**model.bits / (2**model.bits - 1))
        found = [
            PictureRow(
                "Reconstructions",
                originals[0][0],
                {"pictures": originals, "from latents": line(model.decode(latents))},
            )
        ]
        if rows > 1:
            found.append(_samples(model, device))
        for item in range(min(rows - 2, len(images))):
            lines = dict(_edits(model, directions, latents[item], labels[item], index.schema))
            found.append(
                PictureRow(f"Attributes moved, item {item + 1}", originals[item][0], lines)
            )
    model.train(was_training)
    return found


def _samples(model: Glow, device: torch.device) -> PictureRow:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SHOWN, model.dimensions, generator=generator).to(device)
    lines = {f"temperature {t}": line(model.decode(t * noise)) for t in TEMPERATURES}
    return PictureRow("Samples", lines[f"temperature {TEMPERATURES[0]}"][0][0], lines)


def _edits(
    model: Glow, directions: Tensor, latents: Tensor, labels: Tensor, schema: Schema
) -> Iterator[tuple[str, list[tuple[bytes, bool]]]]:
    """Move one item's latents (D,) to up to SHOWN values of each attribute that is known."""
    for attribute, kind in enumerate(schema.attributes):
        if labels[attribute] == UNKNOWN:
            continue
        size = len(kind.values)
        values = torch.linspace(0, size - 1, min(SHOWN, size)).round().long()
        own = labels.repeat(len(values), 1)
        targets = own.clone()
        targets[:, attribute] = values.to(labels.device)
        moved = edited(latents.expand(len(values), -1), directions, own, targets, schema)
        names = ", ".join(kind.values[value] for value in values.tolist())
        yield f"{kind.name}: {names}", line(model.decode(moved))
