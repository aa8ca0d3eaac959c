"""The summary of a build, as JSON and as text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from adde.schema import UNKNOWN, shows
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.packing.groups import neighbour_shares
from adde.shards.packing.writer import Written

MAX_LISTED = 20
"""Lines of a list that the text shows; the JSON has all."""


def summarise(
    catalogue: Catalogue, written: Written, notices: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the content of summary.json; it counts the items that were written."""
    index, splits = written.index, np.asarray(catalogue.splits)
    groups_of = {
        split: [group for group in written.groups if splits[group[0]] == split]
        for split in index.splits
    }
    rows_of = {split: np.concatenate(groups) for split, groups in groups_of.items()}
    duplicates = [
        {"item_ids": [catalogue.item_ids[row] for row in rows], "splits": splits[rows].tolist()}
        for rows in written.duplicates
    ]
    return {
        "name": catalogue.name,
        "items": {split: len(rows) for split, rows in rows_of.items()},
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "attributes": _value_counts(catalogue, rows_of),
        "one_edit_neighbour": {
            split: neighbour_shares(catalogue.labels[rows], list(map(len, groups_of[split])))
            for split, rows in rows_of.items()
        },
        "duplicates": duplicates,
        "unreadable": written.unreadable,
        "notices": list(notices),
    }


def _value_counts(catalogue: Catalogue, rows_of: dict[str, Any]) -> dict[str, Any]:
    """Count items by attribute, value and split; also give the share of items without a value."""
    counts: dict[str, Any] = {}
    rows = np.concatenate(list(rows_of.values()))
    for position, attribute in enumerate(catalogue.schema.attributes):
        column = catalogue.labels[:, position]
        values = {
            value: {
                split: int(shows(column[rows], np.int64(label)).sum())
                for split, rows in rows_of.items()
            }
            for label, value in enumerate(attribute.values)
        }
        missing = float((column[rows] == UNKNOWN).mean())
        counts[attribute.name] = {"values": values, "missing": missing}
    return counts


def as_text(summary: dict[str, Any]) -> str:
    """Format the summary for the terminal."""
    items = ", ".join(f"{split} {count:,}" for split, count in summary["items"].items())
    lines = [
        f"{summary['name']}: {sum(summary['items'].values()):,} items ({items}) in "
        f"{summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB",
        *(f"note: {notice}" for notice in summary["notices"]),
        "",
        *_value_table(summary),
        *neighbour_lines(summary["one_edit_neighbour"]),
        *_duplicates(summary["duplicates"]),
        *listed("pictures that cannot be read were left out", summary["unreadable"]),
    ]
    return "\n".join(lines)


def neighbour_lines(shares: dict[str, dict[str, float]]) -> list[str]:
    """Format the `neighbour_shares` of each split."""
    return [
        "",
        "items with another that differs in one attribute, in their split and in their group:",
        *(f"  {name:5}  {s['in_split']:6.1%}  {s['in_group']:6.1%}" for name, s in shares.items()),
    ]


def _value_table(summary: dict[str, Any]) -> list[str]:
    splits = list(summary["items"])
    total = sum(summary["items"].values())
    rows = [["attribute", "value", *splits, "share"]]
    for name, entry in summary["attributes"].items():
        by_count = sorted(entry["values"].items(), key=lambda item: -sum(item[1].values()))
        for position, (value, counts) in enumerate(by_count[:MAX_LISTED]):
            numbers = [f"{counts[split]:,}" for split in splits]
            share = f"{sum(counts.values()) / total:.1%}"
            rows.append(["" if position else name, value, *numbers, share])
        if len(by_count) > MAX_LISTED:
            rows.append(["", f"and {len(by_count) - MAX_LISTED} more values"])
        rows.append(["", "(missing)", *[""] * len(splits), f"{entry['missing']:.1%}"])
    return aligned(rows)


def aligned(rows: list[list[str]]) -> list[str]:
    """Align a table: the first two columns left, the others right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def _duplicates(found: list[dict[str, Any]]) -> list[str]:
    across = [entry for entry in found if len(set(entry["splits"])) > 1]
    within = [entry for entry in found if len(set(entry["splits"])) == 1]
    shown = [
        " = ".join(f"{name} ({split})" for name, split in zip(entry["item_ids"], entry["splits"]))
        for entry in across + within
    ]
    warning = [
        f"warning: {len(across)} pictures are in several splits, so training sees test items; "
        "--group-by keeps items together"
    ]
    return listed("pictures that several items have", shown) + (warning if across else [])


def listed(what: str, entries: list[str]) -> list[str]:
    """Format a heading and the first entries of a list; nothing if it is empty."""
    if not entries:
        return []
    rest = [f"  and {len(entries) - MAX_LISTED} more"] if len(entries) > MAX_LISTED else []
    return ["", f"{len(entries)} {what}:", *(f"  {entry}" for entry in entries[:MAX_LISTED]), *rest]
