r"""Packs a catalogue into WebDataset shards with an index.

python shards/build.py --catalogue wardrobe --out data/wardrobe
python shards/build.py --catalogue wardrobe-hard --items 20000 --out data/wardrobe-hard
python shards/build.py --catalogue items.csv --images photos/ --out data/shop --size 256
python shards/build.py --catalogue items.parquet --images photos/ --out data/shop \
        --group-by family --attributes colour sleeve pattern
"""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from adde.errors import run_program
from adde.shards.catalogue import Catalogue
from adde.shards.pack import SUMMARY_NAME, PackOptions, pack
from adde.shards.summary import as_text
from adde.shards.tabular import TableOptions, read_catalogue

EMBEDDED = ("wardrobe", "wardrobe-hard")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Packs a catalogue into WebDataset shards with an index."""

    catalogue: str
    """A .csv or .parquet table, or an embedded catalogue: wardrobe or wardrobe-hard."""
    out: Path
    """Folder of the shards; shards of anything else there are replaced."""
    images: Path | None = None
    """Folder that the names of the table's pictures start from; the table's own if not given."""
    size: int | None = None
    """Cap on a picture's short side, pixels; 256 if not given, 64 for an embedded catalogue."""
    items: int = 20_000
    """Items of an embedded catalogue."""
    workers: int | None = None
    """Processes that make pictures; one per core if not given."""
    layout: Annotated[PackOptions, tyro.conf.arg(name="")] = field(default_factory=PackOptions)
    table: Annotated[TableOptions, tyro.conf.arg(name="")] = field(default_factory=TableOptions)


def main() -> None:
    # A job that is told to stop cleans up after itself, as at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = tyro.cli(Arguments)
    catalogue, stamp, notices = open_catalogue(arguments)
    summary = pack(
        catalogue,
        arguments.out,
        arguments.layout,
        workers=arguments.workers,
        stamp=stamp,
        notices=notices,
    )
    if summary is None:
        print(f"{arguments.out}: packed from the same before, nothing to do")
    else:
        print(as_text(summary))
        print(f"\nwritten: {arguments.out}, the summary also to {arguments.out / SUMMARY_NAME}")


def open_catalogue(arguments: Arguments) -> tuple[Catalogue, str, tuple[str, ...]]:
    """The catalogue, a stamp of its picture files, and what to tell of it."""
    if arguments.catalogue in EMBEDDED:
        # Imported here: who packs a table needs no renderer.
        from adde.shards.wardrobe import wardrobe
        from adde.shards.wardrobe_hard import wardrobe_hard

        draw = wardrobe if arguments.catalogue == "wardrobe" else wardrobe_hard
        size = arguments.size if arguments.size is not None else 64
        return draw(arguments.items, arguments.layout.seed, size), "", ()
    path = Path(arguments.catalogue)
    size = arguments.size if arguments.size is not None else 256
    table = read_catalogue(path, arguments.images or path.parent, arguments.table, size)
    return table, table.stamp(), table.notices


if __name__ == "__main__":
    run_program(main)
