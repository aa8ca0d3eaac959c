"""The values of --catalogue, and the reader of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from adde.errors import UserError, did_you_mean
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.drawn.grids import OPTIONS as GRID
from adde.shards.catalogues.drawn.rooms import rooms
from adde.shards.catalogues.drawn.sprites import VARIANTS, sprites
from adde.shards.catalogues.public.asen import asen
from adde.shards.catalogues.public.cars3d import read_cars3d
from adde.shards.catalogues.public.celeba import celeba
from adde.shards.catalogues.public.deepfashion import deepfashion
from adde.shards.catalogues.public.fashionai import fashionai
from adde.shards.catalogues.public.hf_dataset import read_saved_dataset
from adde.shards.catalogues.public.npz_sets import read_dsprites, read_mpi3d
from adde.shards.catalogues.public.paper_files import read_support
from adde.shards.catalogues.public.polyvore import polyvore
from adde.shards.catalogues.public.shapes3d import read_shapes3d
from adde.shards.catalogues.public.smallnorb import read_smallnorb
from adde.shards.catalogues.public.zappos import zappos
from adde.shards.catalogues.tables.tabular import TableOptions, read_catalogue

EMBEDDED_SIZE, SIZE = 64, 256
"""Default caps on a picture's short side, pixels."""


@dataclass(frozen=True)
class Request:
    """The arguments of `open_catalogue`; `path` is the part of `name` after the kind."""

    name: str
    path: Path
    images: Path | None
    options: TableOptions
    size: int
    items: int
    seed: int
    skip_unreadable: bool


Reader = tuple[Callable[[Request], Catalogue], tuple[str, ...]]
"""A reader, and the fields of TableOptions that it uses. Others are rejected, not ignored."""

TABLE = tuple(field.name for field in fields(TableOptions) if field.name != "hold_out")


def _wardrobe(r: Request) -> Catalogue:
    # Imported here, because packing a table needs no renderer.
    from adde.shards.catalogues.drawn.wardrobe import wardrobe
    from adde.shards.catalogues.drawn.wardrobe_hard import wardrobe_hard
    from adde.shards.catalogues.drawn.wardrobe_outfits import wardrobe_outfits

    draw = {
        "wardrobe": wardrobe,
        "wardrobe-hard": wardrobe_hard,
        "wardrobe-outfits": wardrobe_outfits,
    }
    return draw[r.name](r.items, r.seed, r.size)


EMBEDDED: Mapping[str, Reader] = {
    **dict.fromkeys(("wardrobe", "wardrobe-hard", "wardrobe-outfits"), (_wardrobe, TABLE)),
    "rooms": (lambda r: rooms(r.options, r.items, r.seed, r.size), GRID),
    **dict.fromkeys(
        VARIANTS, (lambda r: sprites(r.name, r.options, r.items, r.seed, r.size), GRID)
    ),
}
"""Readers of the embedded catalogues, by name."""

KINDS: Mapping[str, Reader] = {
    "support": (
        lambda r: read_support(r.path, r.images, r.options.val_share, r.size),
        ("val_share",),
    ),
    "deepfashion": (lambda r: deepfashion(r.path, r.images, r.options, r.size), TABLE),
    "celeba": (lambda r: celeba(r.path, r.images, r.options, r.size), TABLE),
    "3dshapes": (lambda r: read_shapes3d(r.path, r.options, r.size), GRID),
    "zappos": (lambda r: zappos(r.path, r.images, r.options, r.size), TABLE),
    "asen": (lambda r: asen(r.path, r.images, r.size), ()),
    "fashionai": (
        lambda r: fashionai(r.path, r.images, r.options.val_share, r.options.test_share, r.size),
        ("val_share", "test_share"),
    ),
    "polyvore": (lambda r: polyvore(r.path, r.images, r.size, r.skip_unreadable), ()),
    "dsprites": (lambda r: read_dsprites(r.path, r.options, r.size), GRID),
    "mpi3d": (lambda r: read_mpi3d(r.path, r.options, r.size), GRID),
    "cars3d": (lambda r: read_cars3d(r.path, r.options, r.size), GRID),
    "smallnorb": (lambda r: read_smallnorb(r.path, r.options, r.size), GRID),
    "hf": (lambda r: read_saved_dataset(r.path, r.options, r.size), TABLE),
}
"""Readers of public data sets, by the word before the colon of `--catalogue kind:path`."""


def open_catalogue(
    name: str,
    images: Path | None = None,
    options: TableOptions | None = None,
    *,
    size: int | None = None,
    items: int = 20_000,
    seed: int = 0,
    skip_unreadable: bool = False,
    colours: Sequence[str] = (),
) -> Catalogue:
    """Open an embedded catalogue, `kind:path` of KINDS, or a table.

    Args:
        name: One of EMBEDDED, `kind:path`, or the path of a table.
        images: The folder that the names of pictures start from; found if None.
        options: Columns and splits.
        size: Cap on a picture's short side, pixels; SIZE, or EMBEDDED_SIZE, if None.
        items: Number of items of an embedded catalogue.
        seed: Seed of an embedded catalogue.
        skip_unreadable: Leave out unusable rows of a table.
        colours: Attributes that the schema marks as colours, besides those whose name says so.

    Raises:
        UserError: The name is unknown, an option does not apply, or see the reader of the kind.
    """
    if size is not None and size < 1:
        raise UserError(f"--size: expected at least 1 pixel, found {size}")
    options = options or TableOptions()
    kind, colon, rest = name.partition(":")
    if name in EMBEDDED:
        read, used = EMBEDDED[name]
    elif colon and kind in KINDS:
        read, used = KINDS[kind]
    else:
        if colon and not Path(name).exists():
            valid = did_you_mean(kind, KINDS)
            raise UserError(f"--catalogue {name}: unknown kind {kind!r}; {valid}")
        read, used, rest = _table, TABLE, name
    _reject_unused(name, options, used)
    size = size or (EMBEDDED_SIZE if name in EMBEDDED else SIZE)
    found = read(Request(name, Path(rest), images, options, size, items, seed, skip_unreadable))
    schema = found.schema.with_colours(colours)
    return found if schema == found.schema else replace(found, schema=schema)


def _table(r: Request) -> Catalogue:
    return read_catalogue(r.path, r.images or r.path.parent, r.options, r.size, r.skip_unreadable)


def _reject_unused(name: str, options: TableOptions, used: tuple[str, ...]) -> None:
    default = TableOptions()
    for field in fields(options):
        if field.name in used or getattr(options, field.name) == getattr(default, field.name):
            continue
        flag = "--" + field.name.replace("_", "-")
        if field.name == "hold_out":
            exact = [word for word, (_, used) in EMBEDDED.items() if used == GRID]
            exact += [f"{kind}:" for kind, (_, used) in KINDS.items() if used == GRID]
            raise UserError(
                f"{flag}: expected a catalogue of exact factors ({', '.join(exact)}), found {name}"
            )
        raise UserError(f"{flag}: expected no such option with --catalogue {name}")
