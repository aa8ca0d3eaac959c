r"""Packs a catalogue into WebDataset shards with an index.

python shards/build.py --catalogue wardrobe --out data/wardrobe
python shards/build.py --catalogue wardrobe-hard --out data/wardrobe-hard
python shards/build.py --catalogue items.csv --images photos/ --out data/shop --size 256
python shards/build.py --catalogue items.parquet --images photos/ --out data/shop \
        --group-by family --attributes colour sleeve pattern
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from adde.errors import UserError, run_program
from adde.files import read_json, sha256_of_file
from adde.shards.catalogue import Catalogue, TableOptions, read_catalogue
from adde.shards.index import INDEX_NAME, ShardIndex
from adde.shards.summary import as_text, summarise
from adde.shards.writer import write_shards

EMBEDDED = ("wardrobe", "wardrobe-hard")
BUILD_NAME = "build.json"
SUMMARY_NAME = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Packs a catalogue into shards."""

    catalogue: str
    """A .csv or .parquet table, or an embedded catalogue: wardrobe, wardrobe-hard."""
    out: Path
    """Folder of the shards; replaced where it holds shards of something else."""
    images: Path | None = None
    """Folder that the table's picture names start from."""
    size: int = 0
    """Cap on a picture's short side in pixels; default 256, or 64 for an embedded catalogue."""
    items: int = 20_000
    """Items of an embedded catalogue."""
    seed: int = 0
    """Of an embedded catalogue, and of the order of the edit groups."""
    columns: TableOptions = field(default_factory=TableOptions)
    """What the table's columns mean."""
    items_per_shard: int = 1024
    """About how many items a tar holds."""
    workers: int = 0
    """Processes that make pictures; 0: one per core."""
    skip_unreadable: bool = False
    """Leave out pictures that do not decode, instead of stopping."""


def main() -> None:
    arguments = tyro.cli(Arguments, config=(tyro.conf.OmitArgPrefixes,))
    catalogue, notices, stamp = _open(arguments)
    _refuse_strangers(arguments.out)
    fingerprint = _fingerprint(arguments, catalogue, stamp)
    if _is_built(arguments.out, fingerprint):
        print(f"{arguments.out}: holds these shards already")
        return
    index, written = write_shards(
        catalogue,
        arguments.out,
        items_per_shard=arguments.items_per_shard,
        seed=arguments.seed,
        workers=arguments.workers or None,
        skip_unreadable=arguments.skip_unreadable,
        extra_files={BUILD_NAME: json.dumps({"fingerprint": fingerprint})},
    )
    summary = summarise(catalogue, index, written, notices)
    (arguments.out / SUMMARY_NAME).write_text(json.dumps(summary, indent=2), encoding="utf-8")
    print(as_text(summary))


def _open(arguments: Arguments) -> tuple[Catalogue, tuple[str, ...], str]:
    """The catalogue, what to tell of it, and a stamp of its pictures."""
    if arguments.catalogue in EMBEDDED:
        return _draw(arguments), (), ""
    path = Path(arguments.catalogue)
    if arguments.images is None:
        raise UserError("--images: expected the folder of the table's pictures, found none")
    table = read_catalogue(path, arguments.images, arguments.columns, arguments.size or 256)
    return table, table.notices, sha256_of_file(path) + table.stamp()


def _draw(arguments: Arguments) -> Catalogue:
    # Who packs a table needs no renderer.
    from adde.shards.wardrobe import wardrobe
    from adde.shards.wardrobe_hard import wardrobe_hard

    make = wardrobe if arguments.catalogue == "wardrobe" else wardrobe_hard
    return make(arguments.items, arguments.seed, arguments.size or 64)


def _fingerprint(arguments: Arguments, catalogue: Catalogue, stamp: str) -> str:
    asked = {k: v for k, v in asdict(arguments).items() if k not in ("out", "workers")}
    content: dict[str, Any] = {"asked": asked, "schema": catalogue.schema.hash, "stamp": stamp}
    return hashlib.sha256(json.dumps(content, default=str, sort_keys=True).encode()).hexdigest()


def _refuse_strangers(out: Path) -> None:
    """A folder of something else is not ours to replace."""
    if out.exists() and (
        not out.is_dir() or (any(out.iterdir()) and not (out / INDEX_NAME).exists())
    ):
        raise UserError(f"--out: expected an empty folder or one of shards, found {out}")


def _is_built(out: Path, fingerprint: str) -> bool:
    built = out / BUILD_NAME
    if not built.exists() or read_json(built).get("fingerprint") != fingerprint:
        return False
    try:
        ShardIndex.read(out)
    except UserError:
        return False
    return True


if __name__ == "__main__":
    run_program(main)
