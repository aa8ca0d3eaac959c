"""Evaluation of a DNA-GAN: reconstructions and swaps of some items of a split."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from adde.distributed import sum_over_ranks
from adde.methods.dna_gan.model import DNAGAN, put
from adde.methods.dna_gan.objective import draw_exchange
from adde.methods.pictures import line, png_files, scaled, share_items, spread_items
from adde.mining.distances import full_precision
from adde.schema import UNKNOWN
from adde.shards.index import ShardIndex
from adde.training.watching.displays import PictureRow

ITEMS = 1000
"""Items of the split that are swapped, each once."""

CHUNK = 250
"""Pictures decoded at a time."""

DONORS = 300
"""Items of the split among which the displays look for donors."""

SHOWN = 10
"""Most pictures of a line."""


class Coded(NamedTuple):
    """Items with their codes."""

    images: Tensor
    """(n, S, S, 3) uint8."""
    labels: Tensor
    """(n, A) int64 of the learned attributes."""
    pieces: Tensor
    """(n, A, P, ...) float32; those of recessive values are zero."""
    rest: Tensor
    """(n, R, ...) float32."""


@torch.no_grad()
def figures(model: DNAGAN, index: ShardIndex, split: str) -> dict[str, float]:
    """Compute figures of ITEMS items of a split, the same on any number of ranks.

    `psnr` of reconstructions in dB. As the discriminator's own classes see it: `wanted`, the share
    of swapped pictures with the donor's value, `kept`, the share of other attributes that are
    unchanged, `exact`, the share of pictures in which both hold, and the `accuracy` on real
    pictures; all but `exact` also by attribute. A published critic has no classes.
    """
    count = min(ITEMS, index.count(split))
    ranks, rows = share_items(count)
    own = _coded(model, index, split, count, rows)
    everyone = ranks.gather(own.labels)
    drawn = draw_exchange(everyone, torch.Generator().manual_seed(0))
    attribute, donor, usable = map(ranks.local, drawn)
    given = ranks.gather(own.pieces)[donor, attribute]
    swapped = _decoded(model, put(own.pieces, attribute, given), own.rest)
    errors = (_decoded(model, own.pieces, own.rest) - scaled(own.images)).square()
    counted = {"error": (errors.flatten(1).mean(1)[:, None], torch.ones_like(usable)[:, None])}
    seen, plain = model.seen(2 * swapped - 1), model.seen(2 * scaled(own.images) - 1)
    if seen is not None and plain is not None:
        targets = own.labels.clone()
        targets[torch.arange(len(targets)), attribute] = everyone[donor, attribute]
        known, used = own.labels != UNKNOWN, usable.bool()[:, None]
        chosen = F.one_hot(attribute, len(model.names)).bool()
        right = (seen == targets) | ~known
        counted |= {
            "wanted": (right, chosen & used),
            "kept": (right, ~chosen & used & known),
            "accuracy": (plain == own.labels, known),
            "exact": (right.all(1, keepdim=True), used),
        }
    sums = [torch.stack([(hits * among).sum(0), among.sum(0)]) for hits, among in counted.values()]
    total = sum_over_ranks(torch.cat([each.float() for each in sums], dim=1))
    found: dict[str, float] = {}
    for name, part in zip(counted, total.split([each.shape[1] for each in sums], dim=1)):
        if not part[1].any():
            continue  # one attribute alone has no others to keep
        found[name] = float(part[0].sum() / part[1].sum())
        if part.shape[1] > 1:
            shares = (part[0] / part[1].clamp(min=1)).tolist()
            found |= {f"{name}/{attribute}": share for attribute, share in zip(model.names, shares)}
    return {"psnr": -10 * math.log10(max(found.pop("error"), 1e-10)), **found}


@torch.no_grad()
def picture_rows(model: DNAGAN, index: ShardIndex, split: str, rows: int) -> list[PictureRow]:
    """Show `rows` items of a split: reconstructed, then with the piece of each attribute from
    donors of up to SHOWN values, in the schema's order.
    """
    if not rows:
        return []
    own = _coded(model, index, split, DONORS, slice(None))
    chosen = torch.linspace(0, len(own.labels) - 1, min(rows, len(own.labels))).long()
    found: list[PictureRow] = []
    for number, item in enumerate(chosen.tolist()):
        pieces, rest = own.pieces[item : item + 1], own.rest[item : item + 1]
        lines = {"reconstructed": line(_decoded(model, pieces, rest))}
        for at, name in enumerate(model.names):
            donors = _donors(own.labels[:, at], model.sizes[at])
            if not len(donors):
                continue
            given = own.pieces[donors, at]
            attribute = torch.full((len(donors),), at, device=given.device)
            mixed = put(pieces.expand(len(donors), *pieces.shape[1:]), attribute, given)
            swapped = _decoded(model, mixed, rest.expand(len(donors), *rest.shape[1:]))
            values = [model.values[at][label] for label in own.labels[donors, at].tolist()]
            lines[f"{name}: {', '.join(values)}"] = line(swapped)
        picture = png_files(scaled(own.images[item : item + 1]))[0]
        found.append(PictureRow(f"Item {number + 1}", picture, lines))
    return found


def _donors(labels: Tensor, size: int) -> Tensor:
    """Find the first item of each of up to SHOWN values, spread over all `size` values."""
    values = torch.linspace(0, size - 1, min(SHOWN, size)).round().long().tolist()
    found = [(labels == value).nonzero()[:1, 0] for value in values]
    return torch.cat(found)


def _coded(model: DNAGAN, index: ShardIndex, split: str, count: int, rows: slice) -> Coded:
    images, labels = spread_items(model.preprocess, index, split, count, rows)
    device = model.columns.device
    images, labels = images.to(device), labels.to(device)[:, model.columns]
    with full_precision(images):
        parts = [model.encode(chunk) for chunk in images.split(CHUNK)]
    pieces, rest = (torch.cat(each) for each in zip(*parts))
    return Coded(images, labels, model.annihilate(pieces, labels), rest)


def _decoded(model: DNAGAN, pieces: Tensor, rest: Tensor) -> Tensor:
    """Decode to (n, 3, S, S) in 0..1."""
    with full_precision(pieces):
        parts = map(model.decode, pieces.split(CHUNK), rest.split(CHUNK))
        return (torch.cat(list(parts)) + 1) / 2
