r"""Pack a catalogue into WebDataset shards with an index.

python shards/build.py --catalogue wardrobe --out data/wardrobe
python shards/build.py --catalogue wardrobe-hard --items 20000 --out data/wardrobe-hard
python shards/build.py --catalogue rooms --items 20000 --hold-out object_hue shape --out data/rooms
python shards/build.py --catalogue items.csv --images photos/ --out data/shop --size 256
python shards/build.py --catalogue items.parquet --images photos/ --out data/shop \
        --group-by family --attributes colour sleeve pattern
python shards/build.py --catalogue celeba:CelebA/ --out data/celeba --engine ray

To continue an interrupted build, run the same command again.
"""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from adde.errors import run_program
from adde.shards.catalogues.importers import open_catalogue
from adde.shards.catalogues.tables.tabular import TableOptions
from adde.shards.packing.engine import Engine, engine
from adde.shards.packing.pack import SUMMARY_NAME, PackOptions, pack, require_place
from adde.shards.packing.summary import as_text


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Pack a catalogue into WebDataset shards with an index."""

    catalogue: str
    """A .csv or .parquet table, or a folder of .parquet files; kind:path of a public dataset, see
    docs/catalogues.md (support, deepfashion, celeba, 3dshapes, dsprites, mpi3d, cars3d, smallnorb,
    zappos, asen, fashionai, polyvore, hf); or an embedded catalogue: wardrobe, wardrobe-hard,
    wardrobe-outfits, rooms, sprites, sprites-colour or sprites-noisy."""
    out: Path
    """Folder of the shards; existing shards there are replaced."""
    images: Path | None = None
    """Folder that the names of pictures start from; found if not given."""
    size: int | None = None
    """Cap on a picture's short side in pixels; 256 if not given, 64 for an embedded catalogue."""
    items: int = 20_000
    """Number of items of an embedded catalogue."""
    colour: tuple[str, ...] = ()
    """Attributes whose values are colours, which augmentation keeps; marked anyway if a word of
    their name is colour, color or hue."""
    workers: int | None = None
    """Processes that write shards; one per core if not given."""
    engine: Engine = "processes"
    """Processes of this machine, or the Ray cluster of RAY_ADDRESS, which must see the same
    folders."""
    layout: Annotated[PackOptions, tyro.conf.arg(name="")] = field(default_factory=PackOptions)
    table: Annotated[TableOptions, tyro.conf.arg(name="")] = field(default_factory=TableOptions)


def main() -> None:
    # On SIGTERM, clean up as on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = tyro.cli(Arguments)
    require_place(arguments.out)  # before reading a large table
    catalogue = open_catalogue(
        arguments.catalogue,
        arguments.images,
        arguments.table,
        size=arguments.size,
        items=arguments.items,
        seed=arguments.layout.seed,
        skip_unreadable=arguments.layout.skip_unreadable,
        colours=arguments.colour,
    )
    run = engine(arguments.engine, arguments.workers)
    summary = pack(catalogue, arguments.out, arguments.layout, run)
    if summary is None:
        print(f"{arguments.out}: up to date, nothing to do")
    else:
        print(as_text(summary))
        print(f"\nwritten: {arguments.out}; the summary is also in {arguments.out / SUMMARY_NAME}")


if __name__ == "__main__":
    run_program(main)
