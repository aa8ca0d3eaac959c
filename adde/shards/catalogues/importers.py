"""What --catalogue may say, and the catalogue that it opens."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from adde.errors import UserError, did_you_mean
from adde.metrics import Queries
from adde.shards.catalogues.annotations import celeba, deepfashion
from adde.shards.catalogues.asen import asen
from adde.shards.catalogues.catalogue import Catalogue, Items
from adde.shards.catalogues.factor_sets import (
    read_cars3d,
    read_dsprites,
    read_mpi3d,
    read_smallnorb,
)
from adde.shards.catalogues.fashionai import fashionai
from adde.shards.catalogues.grids import OPTIONS
from adde.shards.catalogues.hf_dataset import read_saved_dataset
from adde.shards.catalogues.paper_files import read_support
from adde.shards.catalogues.polyvore import polyvore
from adde.shards.catalogues.rooms import rooms
from adde.shards.catalogues.shapes3d import read_shapes3d
from adde.shards.catalogues.sprites import VARIANTS as SPRITES
from adde.shards.catalogues.sprites import sprites
from adde.shards.catalogues.tabular import TableOptions, read_catalogue
from adde.shards.catalogues.zappos import zappos
from adde.shards.given import Given

EMBEDDED = (
    *("wardrobe", "wardrobe-hard", "wardrobe-outfits"),
    *("rooms", "sprites", "sprites-colour", "sprites-noisy"),
)
EMBEDDED_SIZE, SIZE = 64, 256
"""Caps on a picture's short side, pixels, where none is given."""

KINDS = {
    "support": "folder of imgs_*.txt, labels_*.txt and attr_num.txt of the published code",
    "deepfashion": "folder of the category and attribute prediction benchmark",
    "celeba": "folder of list_attr_celeba.txt and list_eval_partition.txt",
    "3dshapes": "3dshapes.h5",
    "zappos": "folder of ut-zap50k-data/ and ut-zap50k-images/; CSN's tripletlists/ if there",
    "asen": "folder of meta.json, filenames_*.txt and the lists of queries and candidates",
    "fashionai": "folder of Annotations/label.csv",
    "polyvore": "folder disjoint/ or nondisjoint/ of Polyvore Outfits",
    "dsprites": "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
    "mpi3d": "mpi3d_*.npz",
    "cars3d": "folder of the .mat files, data/cars of nips2015-analogy-data",
    "smallnorb": "folder of the six .mat files, unzipped",
    "hf": "folder that a Hugging Face dataset was saved to",
}
"""What may stand before the colon of `--catalogue kind:path`, and what path then is."""

GRIDS: dict[str, Callable[[Path, TableOptions, int], Items]] = {
    "3dshapes": read_shapes3d,
    "dsprites": read_dsprites,
    "mpi3d": read_mpi3d,
    "cars3d": read_cars3d,
    "smallnorb": read_smallnorb,
}
"""Readers of sets of exact factors; the last argument is a cap on a picture's side."""


@dataclass(frozen=True)
class Opened:
    """A catalogue, what to tell of it, and the queries that came with it."""

    catalogue: Catalogue
    notices: tuple[str, ...] = ()
    queries: Queries | None = None
    """Of the test split; references are rows of the catalogue."""
    given: Given | None = None
    """What else came with it."""


def open_catalogue(
    name: str,
    images: Path | None = None,
    options: TableOptions | None = None,
    *,
    size: int | None = None,
    items: int = 20_000,
    seed: int = 0,
    skip_unreadable: bool = False,
) -> Opened:
    """Opens what `name` says: an embedded catalogue, `kind:path` of KINDS, or a table's path.

    Args:
        name: see above.
        images: folder that the names of pictures start from; found if None.
        options: columns and splits.
        size: cap on a picture's short side, pixels; None is SIZE, or EMBEDDED_SIZE.
        items: number of items of an embedded catalogue.
        seed: of an embedded catalogue.
        skip_unreadable: leave out rows of a table that cannot be used.

    Raises:
        UserError: nothing of that name, or as of the reader of its kind.
    """
    if size is not None and size < 1:
        raise UserError(f"--size: expected at least 1 pixel, found {size}")
    options = options or TableOptions()
    if name in EMBEDDED:
        return _embedded(name, options, items, seed, EMBEDDED_SIZE if size is None else size)
    size = SIZE if size is None else size
    kind, colon, rest = name.partition(":")
    path = Path(rest)
    if kind in GRIDS:
        _refuse_others(name, options, OPTIONS)
        return _opened(GRIDS[kind](path, options, size))
    _refuse_hold_out(name, options)
    if kind == "support":
        _refuse_others(name, options, ("val_share",))
        found = read_support(path, images, options.val_share, size)
        return Opened(found.items, found.items.notices, found.queries)
    if kind in ("deepfashion", "celeba"):
        read = deepfashion if kind == "deepfashion" else celeba
        return _opened(read(path, images, options, size))
    if kind == "zappos":
        return _opened(*zappos(path, images, options, size))
    if kind == "fashionai":
        _refuse_others(name, options, ("val_share", "test_share"))
        return _opened(fashionai(path, images, options.val_share, options.test_share, size))
    if kind in ("asen", "polyvore"):
        _refuse_others(name, options, ())
        if kind == "asen":
            return _opened(*asen(path, images, size))
        return _opened(*polyvore(path, images, size, skip_unreadable))
    if kind == "hf":
        return _opened(read_saved_dataset(path, options, size))
    if colon and not Path(name).exists():
        raise UserError(f"--catalogue {name}: unknown kind {kind!r}; {did_you_mean(kind, KINDS)}")
    path = Path(name)
    return _opened(read_catalogue(path, images or path.parent, options, size, skip_unreadable))


def _opened(items: Items, given: Given | None = None) -> Opened:
    return Opened(items, items.notices, given=given)


def _embedded(name: str, options: TableOptions, items: int, seed: int, size: int) -> Opened:
    if name == "rooms":
        _refuse_others(name, options, OPTIONS)
        return Opened(rooms(options, items, seed, size))
    if name in SPRITES:
        _refuse_others(name, options, OPTIONS)
        return Opened(sprites(name, options, items, seed, size))
    _refuse_hold_out(name, options)
    # Imported here: who packs a table needs no renderer.
    from adde.shards.catalogues.wardrobe import wardrobe
    from adde.shards.catalogues.wardrobe_hard import wardrobe_hard
    from adde.shards.catalogues.wardrobe_outfits import wardrobe_outfits

    if name == "wardrobe-outfits":
        outfits = wardrobe_outfits(items, seed, size)
        return Opened(outfits, given=outfits.given)
    draw = wardrobe if name == "wardrobe" else wardrobe_hard
    return Opened(draw(items, seed, size))


def _refuse_hold_out(name: str, options: TableOptions) -> None:
    if options.hold_out:
        exact = ", ".join(("rooms", *SPRITES, *(f"{kind}:" for kind in GRIDS)))
        raise UserError(
            f"--hold-out: expected a catalogue of exact factors ({exact}), found {name}"
        )


def _refuse_others(name: str, options: TableOptions, used: tuple[str, ...]) -> None:
    """An option that would have no effect is refused instead of ignored."""
    default = TableOptions()
    for field in fields(options):
        if field.name not in used and getattr(options, field.name) != getattr(default, field.name):
            flag = "--" + field.name.replace("_", "-")
            raise UserError(f"{flag}: expected no such option with --catalogue {name}")
