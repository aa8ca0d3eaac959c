"""What a build found and wrote, as JSON and as text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from adde.schema import UNKNOWN
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.packing.groups import has_neighbour, neighbour_in_group
from adde.shards.packing.writer import Written

SHOWN = 20
"""Lines of a list that the text shows; the JSON has them all."""


def summarise(
    catalogue: Catalogue, written: Written, notices: Sequence[str] = ()
) -> dict[str, Any]:
    """The content of summary.json; counts are of the items that were written."""
    index, splits = written.index, np.asarray(catalogue.splits)
    rows_of = {
        split: np.array([row for group in written.groups for row in group if splits[row] == split])
        for split in index.splits
    }
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
        "one_edit_neighbour": _neighbours(catalogue, written, rows_of),
        "duplicates": duplicates,
        "unreadable": written.unreadable,
        "notices": list(notices),
    }


def _value_counts(catalogue: Catalogue, rows_of: dict[str, Any]) -> dict[str, Any]:
    """By attribute: items of each value by split, and the share of items without a value."""
    counts: dict[str, Any] = {}
    rows = np.concatenate(list(rows_of.values()))
    for position, attribute in enumerate(catalogue.schema.attributes):
        column = catalogue.labels[:, position]
        values = {
            value: {split: int((column[rows] == label).sum()) for split, rows in rows_of.items()}
            for label, value in enumerate(attribute.values)
        }
        missing = float((column[rows] == UNKNOWN).mean())
        counts[attribute.name] = {"values": values, "missing": missing}
    return counts


def _neighbours(
    catalogue: Catalogue, written: Written, rows_of: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """By split: share of items one attribute away from another in the split, and in the group."""
    in_group = neighbour_in_group(catalogue.labels, written.groups)
    return {
        split: {
            "in_split": float(has_neighbour(catalogue.labels[rows]).mean()),
            "in_group": float(in_group[rows].mean()),
        }
        for split, rows in rows_of.items()
    }


def as_text(summary: dict[str, Any]) -> str:
    """The summary as a person reads it."""
    items = ", ".join(f"{split} {count:,}" for split, count in summary["items"].items())
    lines = [
        f"{summary['name']}: {sum(summary['items'].values()):,} items ({items}) in "
        f"{summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB",
        *(f"note: {notice}" for notice in summary["notices"]),
        "",
        *_value_table(summary),
        "",
        "items with another that differs in one attribute, in their split and in their group:",
    ]
    for split, share in summary["one_edit_neighbour"].items():
        lines.append(f"  {split:5}  {share['in_split']:6.1%}  {share['in_group']:6.1%}")
    return "\n".join(lines + _duplicates(summary["duplicates"]) + _unreadable(summary))


def _value_table(summary: dict[str, Any]) -> list[str]:
    splits = list(summary["items"])
    total = sum(summary["items"].values())
    rows = [["attribute", "value", *splits, "share"]]
    for name, entry in summary["attributes"].items():
        by_count = sorted(entry["values"].items(), key=lambda item: -sum(item[1].values()))
        for position, (value, counts) in enumerate(by_count[:SHOWN]):
            numbers = [f"{counts[split]:,}" for split in splits]
            share = f"{sum(counts.values()) / total:.1%}"
            rows.append(["" if position else name, value, *numbers, share])
        if len(by_count) > SHOWN:
            rows.append(["", f"and {len(by_count) - SHOWN} more values"])
        rows.append(["", "(missing)", *[""] * len(splits), f"{entry['missing']:.1%}"])
    return aligned(rows)


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table whose first two columns are words and whose others are numbers."""
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
        f"warning: {len(across)} pictures stand in several splits, so that test items are known "
        "from training; --group-by keeps items together"
    ]
    return listed("pictures that several items have", shown) + (warning if across else [])


def _unreadable(summary: dict[str, Any]) -> list[str]:
    return listed("pictures that cannot be read were left out", summary["unreadable"])


def listed(what: str, entries: list[str]) -> list[str]:
    """Lines of a list that is cut short; none where it is empty."""
    if not entries:
        return []
    rest = [f"  and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return ["", f"{len(entries)} {what}:", *(f"  {entry}" for entry in entries[:SHOWN]), *rest]
