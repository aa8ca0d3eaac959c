"""Problems of a catalogue, read from its shards: labels, pictures, and targets of edits."""

from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from adde.errors import UserError
from adde.preprocess import decode
from adde.schema import UNKNOWN, Labels, shows
from adde.shards.checking.similar import (
    BANDS,
    THUMBNAIL,
    Hashes,
    Thumbnails,
    fingerprint,
    near_duplicates,
)
from adde.shards.index import ShardIndex
from adde.shards.packing.groups import neighbour_shares
from adde.shards.packing.summary import aligned, listed, neighbour_lines
from adde.shards.packing.workers import in_order
from adde.shards.reader import ShardReader

RARE = 10
"""A value with fewer training items is reported as rare."""
FLAT = 6
"""A picture whose thumbnail spans at most this many of 255 levels is reported as blank."""


@dataclass(frozen=True)
class Scan:
    """The labels and pictures of n samples of a shard, or of all samples in stored order."""

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
    """Reasons of pictures that do not decode, by row."""


def scan(index: ShardIndex, workers: int | None = None) -> Scan:
    """Read and decode every sample of an index, split by split.

    Raises:
        UserError: A sample's labels cannot be read; names shard and position.
    """
    shards = [shard for split in index.splits for shard in index.split(split)]
    jobs = (replace(index, shards=(shard,)) for shard in shards)  # workers receive one shard each
    parts: list[Scan] = []
    broken: dict[int, str] = {}
    total = sum(shard.samples for shard in shards)
    with (
        closing(in_order(_scan_shard, jobs, workers)) as scans,
        tqdm(total=total, desc="scan", unit="picture", disable=None) as bar,
    ):
        for part in scans:
            broken |= {bar.n + row: reason for row, reason in part.broken.items()}
            parts.append(part)
            bar.update(len(part.item_ids))
    return Scan(
        [item_id for part in parts for item_id in part.item_ids],
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        np.concatenate([part.thumbnails for part in parts]),
        np.concatenate([part.short_sides for part in parts]),
        broken,
    )


def _scan_shard(index: ShardIndex) -> Scan:
    (shard,), reader = index.shards, ShardReader(index)
    found = Scan(
        [],
        np.zeros((shard.samples, len(index.schema.names)), np.int64),
        np.zeros((shard.samples, BANDS), np.uint16),
        np.zeros((shard.samples, THUMBNAIL, THUMBNAIL, 3), np.uint8),
        np.zeros(shard.samples, np.int64),
    )
    for position in range(shard.samples):
        sample = reader.read(shard, position)
        found.item_ids.append(sample.item_id)
        found.labels[position] = sample.labels
        try:
            image = decode(sample.picture, sample.where)
        except UserError as error:
            found.broken[position] = str(error)
            continue
        found.hashes[position], found.thumbnails[position] = fingerprint(image)
        found.short_sides[position] = min(image.size)
    reader.close()
    return found


def diagnose(index: ShardIndex, scanned: Scan) -> dict[str, Any]:
    """Return the findings as JSON, with the rows of `scanned`. Lists begin with the worst entry."""
    splits = np.repeat(list(index.splits), [index.count(split) for split in index.splits])
    whole = scanned.short_sides > 0
    spans = np.ptp(scanned.thumbnails.reshape(len(whole), -1, 3).astype(np.int16), axis=1).max(1)
    blank = whole & (spans <= FLAT)
    # Blank pictures all look the same; they are reported separately.
    rows = np.flatnonzero(whole & ~blank)
    pairs = near_duplicates(scanned.hashes[rows], scanned.thumbnails[rows], _numbered(splits[rows]))
    sides = scanned.short_sides[whole]
    return {
        "name": index.name,
        "items": {split: index.count(split) for split in index.splits},
        "attributes": _attributes(index, scanned.labels, splits),
        "single_edit": _single_edit(index, scanned.labels, splits),
        "near_duplicates": [
            {"rows": rows[pair].tolist(), "splits": splits[rows[pair]].tolist(), "bits": int(bits)}
            for pair, bits in zip(pairs.rows, pairs.bits_apart)
        ],
        "broken": [{"row": row, "reason": reason} for row, reason in scanned.broken.items()],
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
    """Return coverage and counts by split, balance, and unlearnable values of each attribute."""
    found: list[dict[str, Any]] = []
    for column, attribute in enumerate(index.schema.attributes):
        own = labels[:, column]
        counts = {
            split: np.array(
                [
                    np.count_nonzero(shows(own[splits == split], np.int64(label)))
                    for label in range(len(attribute.values))
                ]
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
    """Return the entropy of the values divided by its maximum: 1 is even, 0 is a single value."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log(shares)).sum() / np.log(len(counts))) + 0.0


def _single_edit(
    index: ShardIndex, labels: Labels, splits: npt.NDArray[np.str_]
) -> dict[str, dict[str, float]]:
    return {
        split: neighbour_shares(
            labels[splits == split],
            [size for shard in index.split(split) for size in shard.groups.tolist()],
        )
        for split in index.splits
    }


def as_text(found: dict[str, Any], item_ids: list[str]) -> str:
    """Format the findings for the terminal."""
    splits = list(found["items"])
    items = ", ".join(f"{split} {count:,}" for split, count in found["items"].items())
    side = found["short_side"]
    lines = [
        f"{found['name']}: {items}; short side of pictures: minimum {side['least']} px, "
        f"median {side['median']} px",
        "",
        *aligned(
            [
                ["attribute", "largest value", *(f"known {s}" for s in splits), "balance", "rare"],
                *(_attribute_row(a, splits) for a in found["attributes"]),
            ]
        ),
        *neighbour_lines(found["single_edit"]),
    ]
    for attribute in found["attributes"]:
        for kind, which in (
            ("unseen", "that no training item has, but others do"),
            ("empty", "that no item has"),
            ("rare", f"that fewer than {RARE} training items have"),
        ):
            lines += listed(f"values of {attribute['name']!r} {which}", attribute[kind])
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
