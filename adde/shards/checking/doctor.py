"""What ails a catalogue, read from its shards: labels, pictures, and what edits can find."""

from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from adde.errors import UserError
from adde.preprocess import decode
from adde.schema import UNKNOWN, Labels
from adde.shards.checking.similar import BANDS, THUMBNAIL, Hashes, Thumbnails, look, near_duplicates
from adde.shards.index import Shard, ShardIndex
from adde.shards.packing.groups import has_neighbour, neighbour_in_group
from adde.shards.packing.summary import aligned, listed
from adde.shards.packing.workers import in_order
from adde.shards.reader import ShardReader

RARE = 10
"""Training items below which a value is called rare."""
FLAT = 6
"""Levels of 255 that a thumbnail spans at most if the picture is called blank."""
SHOWN = 20
"""Entries of a list that the text names."""


@dataclass(frozen=True)
class Looked:
    """What was seen of n samples, or of all N of an index in stored order."""

    item_ids: list[str]
    labels: Labels
    """(n, A) int64."""
    hashes: Hashes
    """(n, BANDS) uint16, zero where the picture is broken."""
    thumbnails: Thumbnails
    """(n, THUMBNAIL, THUMBNAIL, 3) uint8."""
    short_sides: npt.NDArray[np.int64]
    """(n,) pixels; 0 where the picture is broken."""
    broken: dict[int, str] = field(default_factory=dict[int, str])
    """Why a row's picture does not decode."""


@dataclass(frozen=True)
class _Visit:
    """A shard to be looked at by a worker."""

    index: ShardIndex
    """Of this shard alone: it is what travels."""

    @property
    def shard(self) -> Shard:
        return self.index.shards[0]


def look_through(index: ShardIndex, workers: int | None = None) -> Looked:
    """Reads and decodes every sample of an index, its splits one after another.

    Raises:
        UserError: a sample's labels cannot be read; names shard and position.
    """
    shards = [shard for split in index.splits for shard in index.split(split)]
    jobs = (_Visit(ShardIndex(index.root, index.name, index.schema, (s,))) for s in shards)
    parts: list[Looked] = []
    broken: dict[int, str] = {}
    total = sum(shard.samples for shard in shards)
    with (
        closing(in_order(_look_at, jobs, workers)) as looked,
        tqdm(total=total, desc="look", unit="picture", disable=None) as bar,
    ):
        for part in looked:
            broken |= {bar.n + row: reason for row, reason in part.broken.items()}
            parts.append(part)
            bar.update(len(part.item_ids))
    return Looked(
        [item_id for part in parts for item_id in part.item_ids],
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        np.concatenate([part.thumbnails for part in parts]),
        np.concatenate([part.short_sides for part in parts]),
        broken,
    )


def _look_at(visit: _Visit) -> Looked:
    shard, reader = visit.shard, ShardReader(visit.index)
    looked = Looked(
        [],
        np.zeros((shard.samples, len(visit.index.schema.names)), np.int64),
        np.zeros((shard.samples, BANDS), np.uint16),
        np.zeros((shard.samples, THUMBNAIL, THUMBNAIL, 3), np.uint8),
        np.zeros(shard.samples, np.int64),
    )
    for position in range(shard.samples):
        sample = reader.read(shard, position)
        looked.item_ids.append(sample.item_id)
        looked.labels[position] = sample.labels
        try:
            image = decode(sample.picture, sample.where)
        except UserError as error:
            looked.broken[position] = str(error)
            continue
        looked.hashes[position], looked.thumbnails[position] = look(image)
        looked.short_sides[position] = min(image.size)
    reader.close()
    return looked


def diagnose(index: ShardIndex, looked: Looked) -> dict[str, Any]:
    """The findings, as JSON. Rows are those of `looked`; entries of lists are the worst first."""
    splits = np.repeat(list(index.splits), [index.count(split) for split in index.splits])
    whole = looked.short_sides > 0
    spans = np.ptp(looked.thumbnails.reshape(len(whole), -1, 3).astype(np.int16), axis=1).max(1)
    blank = whole & (spans <= FLAT)
    # Blank pictures look all the same, which is not what near-duplicates are about.
    rows = np.flatnonzero(whole & ~blank)
    pairs = near_duplicates(looked.hashes[rows], looked.thumbnails[rows], _numbered(splits[rows]))
    sides = looked.short_sides[whole]
    return {
        "name": index.name,
        "items": {split: index.count(split) for split in index.splits},
        "attributes": _attributes(index, looked.labels, splits),
        "single_edit": _single_edit(index, looked.labels, splits),
        "near_duplicates": [
            {"rows": rows[pair].tolist(), "splits": splits[rows[pair]].tolist(), "bits": int(bits)}
            for pair, bits in zip(pairs.rows, pairs.bits_apart)
        ],
        "broken": [{"row": row, "reason": reason} for row, reason in looked.broken.items()],
        "blank": np.flatnonzero(blank).tolist(),
        "short_side": {
            "least": int(sides.min()) if len(sides) else 0,
            "median": int(np.median(sides)) if len(sides) else 0,
        },
    }


def _numbered(words: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    return np.unique(words, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _attributes(
    index: ShardIndex, labels: Labels, splits: npt.NDArray[np.str_]
) -> list[dict[str, Any]]:
    """By attribute: coverage and counts by split, balance, and values that cannot be learnt."""
    found: list[dict[str, Any]] = []
    for column, attribute in enumerate(index.schema.attributes):
        own = labels[:, column]
        counts = {
            split: np.bincount(
                own[(splits == split) & (own != UNKNOWN)], minlength=len(attribute.values)
            )
            for split in index.splits
        }
        train = counts.get("train", np.zeros(len(attribute.values), np.int64))
        elsewhere = sum(counts.values()) - train
        found.append(
            {
                "name": attribute.name,
                "values": list(attribute.values),
                "counts": {split: count.tolist() for split, count in counts.items()},
                "known": {s: float((own[splits == s] != UNKNOWN).mean()) for s in index.splits},
                "balance": _balance(train),
                "largest": float(train.max() / max(1, train.sum())),
                "rare": [v for v, c in zip(attribute.values, train) if 0 < c < RARE],
                "unseen": [v for v, c, e in zip(attribute.values, train, elsewhere) if not c and e],
                "empty": [v for v, c, e in zip(attribute.values, train, elsewhere) if not c + e],
            }
        )
    return found


def _balance(counts: npt.NDArray[np.int64]) -> float:
    """Entropy of the values over that of equally common ones: 1 is even, 0 a single value."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log(shares)).sum() / np.log(len(counts))) + 0.0


def _single_edit(
    index: ShardIndex, labels: Labels, splits: npt.NDArray[np.str_]
) -> dict[str, dict[str, float]]:
    """By split: share of items one attribute away from another in the split, and in its group."""
    found: dict[str, dict[str, float]] = {}
    for split in index.splits:
        own = labels[splits == split]
        sizes = [size for shard in index.split(split) for size in shard.groups]
        ends = np.cumsum(sizes).tolist()
        groups = [range(end - size, end) for size, end in zip(sizes, ends)]
        found[split] = {
            "in_split": float(has_neighbour(own).mean()),
            "in_group": float(neighbour_in_group(own, groups).mean()),
        }
    return found


def as_text(found: dict[str, Any], item_ids: list[str]) -> str:
    """The findings as a person reads them in a terminal."""
    splits = list(found["items"])
    items = ", ".join(f"{split} {count:,}" for split, count in found["items"].items())
    side = found["short_side"]
    lines = [
        f"{found['name']}: {items}; short side of pictures {side['least']} px at least, "
        f"{side['median']} in the median",
        "",
        *aligned(
            [
                ["attribute", "largest value", *(f"known {s}" for s in splits), "balance", "rare"],
                *(_attribute_row(a, splits) for a in found["attributes"]),
            ]
        ),
        "",
        "items with another that differs in one attribute, in their split and in their group:",
        *(
            f"  {split:5}  {share['in_split']:6.1%}  {share['in_group']:6.1%}"
            for split, share in found["single_edit"].items()
        ),
    ]
    for attribute in found["attributes"]:
        for kind, told in (
            ("unseen", "no training item has, but others do"),
            ("empty", "no item has"),
            ("rare", f"fewer than {RARE} training items have"),
        ):
            name = f"values of {attribute['name']!r} that {told}"
            lines += listed(name, attribute[kind])
    pairs = [
        f"{item_ids[a]} ({x}) = {item_ids[b]} ({y})"
        for (a, b), (x, y) in ((p["rows"], p["splits"]) for p in found["near_duplicates"])
    ]
    lines += listed("pairs of pictures that look the same in different splits", pairs)
    broken = [f"{item_ids[b['row']]}: {b['reason']}" for b in found["broken"]]
    lines += listed("pictures do not decode", broken)
    lines += listed("pictures are blank", [item_ids[row] for row in found["blank"]])
    return "\n".join(lines)


def _attribute_row(attribute: dict[str, Any], splits: list[str]) -> list[str]:
    train = attribute["counts"].get("train", [0])
    largest = attribute["values"][int(np.argmax(train))]
    return [
        attribute["name"],
        f"{largest} {attribute['largest']:.1%}",
        *(f"{attribute['known'][split]:.1%}" for split in splits),
        f"{attribute['balance']:.2f}",
        str(len(attribute["rare"]) + len(attribute["unseen"]) + len(attribute["empty"])),
    ]
