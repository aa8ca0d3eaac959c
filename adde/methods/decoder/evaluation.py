"""Validation of a decoder: reconstructions, and edits as the frozen encoder sees them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adde.distributed import rank
from adde.edits import LabelEdits, all_edits
from adde.methods.adde.model import ADDE
from adde.methods.decoder.model import StyledDecoder, as_drawn, see
from adde.methods.pictures import as_bytes, png_files, scaled
from adde.methods.vae.losses import kl
from adde.metrics import predicted_labels
from adde.mining.distances import full_precision
from adde.preprocess import Picture
from adde.schema import UNKNOWN, Labels, Rows, Schema
from adde.shards.index import ShardIndex
from adde.shards.reader import ShardReader
from adde.shards.shares import StoredOrder
from adde.training.evaluation import EncodedSplit, Evaluator
from adde.training.watching.displays import PictureRow

EDITS = 2048
"""Most edits of a validation."""

BATCH = 256
"""Pictures drawn at a time."""


def represent(encoder: ADDE, model: StyledDecoder, images: Tensor) -> dict[str, Tensor]:
    """Compute what edits are drawn of, with the KL in nats and PSNR in dB of reconstructions."""
    embeddings = encoder.encode(images).embeddings
    mean, log_variance = model.style(images)
    pictures = as_drawn(images, model.shrink)
    drawn = model.drawn(pictures, embeddings, embeddings, mean)
    return {
        "embeddings": embeddings,
        "style": mean,
        "kl": kl(mean, log_variance).sum(1),
        "psnr": psnr(drawn, pictures),
    }


def psnr(drawn: Tensor, pictures: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio in dB, (b,), of pictures (b, 3, S, S) in 0..1."""
    return -10 * (drawn - pictures).square().flatten(1).mean(1).clamp(min=1e-10).log10()


@dataclass(frozen=True, eq=False)
class Items:
    """The encoded items of a split. Pictures are read when needed, because all are too many."""

    index: ShardIndex
    split: str
    encoded: EncodedSplit
    """Outputs of `represent`."""
    model: StyledDecoder

    @property
    def labels(self) -> Labels:
        """(N, A) int64."""
        return self.encoded.labels

    def outputs(self, name: str, rows: Rows) -> Tensor:
        """Return an output of `represent` for some rows, on the model's device."""
        return torch.from_numpy(self.encoded.outputs[name][rows]).to(self.model.encoder.device)

    def pictures(self, rows: Rows) -> Picture:
        """Read the pictures of rows (n,), (n, S, S, 3) uint8 of the size that is drawn."""
        some, places = np.unique(rows, return_inverse=True)
        shards, reader = self.index.split(self.split), ShardReader(self.index)
        samples = tuple(shard.samples for shard in shards)
        stored = StoredOrder(samples, sum(samples))(0)[self.encoded.rows[some]].tolist()
        read = [reader.read(shards[shard], position).picture for shard, position in stored]
        reader.close()
        found = np.stack([self.model.preprocess.load(content) for content in read])
        if self.model.shrink > 1:
            found = as_bytes(as_drawn(torch.from_numpy(found), self.model.shrink)).numpy()
        return found[places]


def encode(model: StyledDecoder, encoder: ADDE, evaluator: Evaluator, split: str) -> Items:
    """Compute `represent` of a split, on all ranks."""
    encoded = evaluator.encode(partial(represent, encoder), model, split)
    return Items(evaluator.index, split, encoded, model)


class Drawn(NamedTuple):
    """Drawn edits."""

    pictures: Picture
    """(Q, S, S, 3) uint8."""
    seen: Labels
    """(Q, A) int64, what the frozen encoder's classifiers say of them."""


def targets_of(edits: LabelEdits, labels: Labels) -> Labels:
    """Return the labels (Q, A) after edits of items with labels (N, A)."""
    return np.where(edits.values == UNKNOWN, labels[edits.reference], edits.values)


@torch.no_grad()
def draw(encoder: ADDE, items: Items, edits: LabelEdits) -> Drawn:
    """Draw edits of a split's items."""
    model = items.model
    targets = targets_of(edits, items.labels)
    indicator = encoder.schema.indicator(items.labels[edits.reference], targets)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(edits), BATCH):
            rows = slice(start, start + BATCH)
            some = edits.reference[rows]
            own, style = items.outputs("embeddings", some), items.outputs("style", some)
            change = torch.from_numpy(indicator[rows]).to(own.device)
            pictures = style.new_empty(0)
            if model.starts_from_pictures:
                pictures = as_drawn(torch.from_numpy(items.pictures(some)).to(own.device), 1)
            with full_precision(own):
                drawn = model.drawn(pictures, own, encoder.edit(own, change), style)
                yield as_bytes(drawn), see(encoder, drawn, model.shrink).logits

    was_training = model.training
    model.eval()
    pictures, logits = (torch.cat(parts).cpu().numpy() for parts in zip(*batches()))
    model.train(was_training)
    return Drawn(pictures, predicted_labels(logits, encoder.schema))


def obedience(seen: Labels, edits: LabelEdits, labels: Labels) -> dict[str, float]:
    """Compare what is seen in drawn edits with what was asked.

    Args:
        seen: (Q, A) int64, in the drawn pictures.
        edits: Q of them.
        labels: (N, A) int64 of the items.

    Returns:
        `wanted`, the share of edited attributes with the wanted value, and `unchanged`, the share
        of the other known attributes with the item's own.
    """
    own = labels[edits.reference]
    edited = edits.values != UNKNOWN
    others = ~edited & (own != UNKNOWN)
    return {
        "wanted": float((seen == edits.values)[edited].mean()),
        "unchanged": float((seen == own)[others].mean()) if others.any() else 1.0,
    }


def figures(items: Items, drawn: Drawn, edits: LabelEdits) -> dict[str, float]:
    """Compute the validation metrics; `score` chooses the best checkpoint."""
    found = {name: float(items.encoded.outputs[name].mean()) for name in ("psnr", "kl")}
    found |= obedience(drawn.seen, edits, items.labels)
    found["score"] = (found["wanted"] + found["unchanged"]) / 2 + found["psnr"] / 100
    return found


def validate(
    model: StyledDecoder, encoder: ADDE, evaluator: Evaluator, split: str, rows: int
) -> tuple[dict[str, float], list[PictureRow]]:
    """Compute `figures` of a split, and `picture_rows`; on all ranks."""
    items = encode(model, encoder, evaluator, split)
    edits = all_edits(items.labels, 1, EDITS)
    found = figures(items, draw(encoder, items, edits), edits)
    return found, picture_rows(encoder, items, rows) if rank() == 0 else []


def picture_rows(encoder: ADDE, items: Items, rows: int) -> list[PictureRow]:
    """Show a few items: their reconstruction, then one edit of each attribute."""
    schema, labels = encoder.schema, items.labels
    found: list[PictureRow] = []
    for item in np.unique(np.linspace(0, len(labels) - 1, rows).astype(np.int64)).tolist():
        edits = one_of_each(labels[item], schema, item)
        drawn = draw(encoder, items, edits)
        right = (drawn.seen == edits.values).any(axis=1).tolist()
        unchanged, *edited = png_files(scaled(torch.from_numpy(drawn.pictures)))
        (original,) = png_files(scaled(torch.from_numpy(items.pictures(np.array([item])))))
        lines = {"drawn as it is": [(unchanged, True)]}
        for number, (picture, good) in enumerate(zip(edited, right[1:]), 1):
            attribute = int((edits.values[number] != UNKNOWN).argmax())
            name = schema.names[attribute]
            value = schema.attributes[attribute].values[int(edits.values[number, attribute])]
            lines[f"{name}: {value}"] = [(picture, good)]
        found.append(PictureRow(f"Item {item + 1}", original, lines))
    return found


def one_of_each(labels: Labels, schema: Schema, item: int) -> LabelEdits:
    """Return edits of one item of labels (A,): none, then each known attribute to another value."""
    known = [a for a in range(len(labels)) if labels[a] != UNKNOWN]
    values = np.full((1 + len(known), len(labels)), UNKNOWN, np.int64)
    for row, a in enumerate(known, 1):
        values[row, a] = (labels[a] + 1 + item % (schema.sizes[a] - 1)) % schema.sizes[a]
    return LabelEdits(np.full(len(values), item), values)
