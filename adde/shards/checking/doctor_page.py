"""The findings of `adde.shards.checking.doctor` as a self-contained page with pictures."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adde.errors import UserError
from adde.files import write_text
from adde.pages import render
from adde.preprocess import decode
from adde.schema import shows
from adde.shards.catalogues.pictures import encode
from adde.shards.checking.doctor import Scan
from adde.shards.index import ShardIndex
from adde.shards.reader import ShardReader

VALUES_SHOWN = 12
"""Most common values of an attribute, shown with a picture."""
PAIRS_SHOWN = 24
BLANK_SHOWN = 24
LISTED = 20
SIDE = 112
"""Side of a picture on the page, pixels."""


class _Pictures:
    """Small pictures by row of the scan, as data: URIs."""

    def __init__(self, index: ShardIndex) -> None:
        self._shards = [shard for split in index.splits for shard in index.split(split)]
        self._ends = np.cumsum([shard.samples for shard in self._shards])
        self._reader = ShardReader(index)

    def uri(self, row: int) -> str | None:
        """Return the URI of a row's picture, or None if it does not decode."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        shard = self._shards[number]
        position = row - int(self._ends[number]) + shard.samples
        sample = self._reader.read(shard, position)
        try:
            image = decode(sample.picture, sample.where, SIDE)
        except UserError:
            return None
        image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
        content, _ = encode(image, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(content).decode()

    def close(self) -> None:
        self._reader.close()


def write_page(index: ShardIndex, found: dict[str, Any], scanned: Scan, path: Path) -> None:
    """Write the page.

    Args:
        index: Index of the shards.
        found: The result of `diagnose`.
        scanned: The scan that it is about.
        path: The page.
    """
    pictures = _Pictures(index)
    total = sum(found["items"].values())
    pairs = found["near_duplicates"]
    page = render(
        Path(__file__).with_name("doctor.html.j2"),
        name=found["name"],
        items=found["items"],
        total=total,
        tiles=_tiles(found, total),
        attributes=[
            _attribute(a, column, scanned, pictures) for column, a in enumerate(found["attributes"])
        ],
        splits=list(found["items"]),
        single_edit=found["single_edit"],
        pairs=[_pair(pair, scanned, pictures) for pair in pairs[:PAIRS_SHOWN]],
        pairs_total=len(pairs),
        blank=[(scanned.item_ids[r], pictures.uri(r)) for r in found["blank"][:BLANK_SHOWN]],
        blank_total=len(found["blank"]),
        broken=[(scanned.item_ids[b["row"]], b["reason"]) for b in found["broken"][:LISTED]],
        broken_total=len(found["broken"]),
        short_side=found["short_side"],
    )
    pictures.close()
    write_text(path, page)


def _tiles(found: dict[str, Any], total: int) -> list[tuple[str, str, bool]]:
    """Return figures, their labels, and whether they indicate a problem."""
    known = [share for a in found["attributes"] for share in a["known"].values()]
    edit = found["single_edit"].get("train", {"in_group": 0.0})["in_group"]
    broken, blank = len(found["broken"]), len(found["blank"])
    pairs = len(found["near_duplicates"])
    return [
        (f"{total:,}", "items", False),
        (f"{100 * float(np.mean(known)):.1f} %", "of labels known", float(np.mean(known)) < 0.5),
        (f"{100 * edit:.1f} %", "of training items with a single-edit target", edit < 0.5),
        (f"{pairs:,}", "near-duplicates across splits", pairs > 0),
        (f"{broken + blank:,}", "broken or blank pictures", broken + blank > 0),
    ]


def _attribute(
    attribute: dict[str, Any], column: int, scanned: Scan, pictures: _Pictures
) -> dict[str, Any]:
    counts = np.sum(list(attribute["counts"].values()), axis=0)
    order = np.argsort(-counts, kind="stable")
    return {
        **attribute,
        "cards": [
            {
                "value": attribute["values"][label],
                "counts": {s: c[label] for s, c in attribute["counts"].items()},
                "share": float(counts[label] / max(1, counts.max())),
                "picture": _example(scanned, column, label, pictures),
            }
            for label in order[:VALUES_SHOWN].tolist()
        ],
        "more": [(attribute["values"][n], int(counts[n])) for n in order[VALUES_SHOWN:].tolist()],
    }


def _example(scanned: Scan, column: int, label: int, pictures: _Pictures) -> str | None:
    has_value = shows(scanned.labels[:, column], np.int64(label))
    rows = np.flatnonzero(has_value & (scanned.short_sides > 0))
    return pictures.uri(int(rows[0])) if len(rows) else None


def _pair(pair: dict[str, Any], scanned: Scan, pictures: _Pictures) -> dict[str, Any]:
    return {
        "bits": pair["bits"],
        "sides": [
            {"item": scanned.item_ids[row], "split": split, "picture": pictures.uri(row)}
            for row, split in zip(pair["rows"], pair["splits"])
        ],
    }
