"""What a build found and wrote, as text and as JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from adde.shards.catalogue import Catalogue
from adde.shards.groups import has_neighbour
from adde.shards.index import ShardIndex
from adde.shards.writer import Written, value_counts

SHOWN = 20


def summarise(
    catalogue: Catalogue, index: ShardIndex, written: Written, notices: tuple[str, ...]
) -> dict[str, Any]:
    """The content of summary.json."""
    train = np.asarray(catalogue.splits) == "train"
    neighbours = has_neighbour(catalogue.labels[train])
    return {
        "name": catalogue.name,
        "items": {split: index.count(split) for split in index.splits},
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "attributes": {
            name: {"values": counts, "missing": missing}
            for name, counts, missing in value_counts(catalogue)
        },
        "train_items_with_a_target_of_a_single_edit": float(neighbours.mean()),
        "duplicates": written.duplicates,
        "duplicates_across_splits": written.across_splits,
        "unreadable": written.unreadable,
        "notices": list(notices),
    }


def as_text(summary: dict[str, Any]) -> str:
    """The summary as a person reads it."""
    items = ", ".join(f"{split} {count:,}" for split, count in summary["items"].items())
    lines = [
        f"{summary['name']}: {sum(summary['items'].values()):,} items ({items}), "
        f"{summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB",
        *(f"note: {notice}" for notice in summary["notices"]),
        "",
    ]
    width = max(len(name) for name in summary["attributes"])
    for name, entry in summary["attributes"].items():
        counts = ", ".join(f"{value} {count:,}" for value, count in entry["values"].items())
        lines.append(f"{name:{width}}  {entry['missing']:6.1%} missing  {counts}")
    share = summary["train_items_with_a_target_of_a_single_edit"]
    lines += ["", f"{share:.1%} of training items have another that differs in one attribute"]
    lines += _listing(
        "pictures are byte for byte the same as another item's", summary["duplicates"]
    )
    if across := summary["duplicates_across_splits"]:
        lines.append(f"warning: {across} of them stand in another split; see --group-by")
    lines += _listing("unreadable pictures were left out", summary["unreadable"])
    return "\n".join(lines)


def _listing(what: str, found: Sequence[str | tuple[str, ...]]) -> list[str]:
    if not found:
        return []
    shown = [entry if isinstance(entry, str) else " = ".join(entry) for entry in found]
    rest = [f"  ... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [f"{len(found)} {what}:", *(f"  {entry}" for entry in shown[:SHOWN]), *rest]
