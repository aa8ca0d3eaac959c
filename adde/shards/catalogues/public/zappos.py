"""UT-Zappos50K, and the triplets of Conditional Similarity Networks (CSN; Veit et al., CVPR 2017).

`ut-zap50k-data/meta-data.csv` has one row per shoe. Picture 100627-72 is
`ut-zap50k-images/<Category>/<SubCategory>/<brand>/100627.72.jpg`; the table does not hold the
brand.

CSN's files lie in the same folder or one below. `filenames.json` is not JSON but lists one path of
a picture per line. `tripletlists/<condition>_tripletlist_<split>.txt` holds three line numbers of
`filenames.json` per line, from 0. Their order is ANCHOR, FAR, CLOSE; most other lists of triplets
have anchor, positive, negative.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adde.errors import UserError
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.pictures import picture_files
from adde.shards.catalogues.public.lists import (
    find_list,
    read_names,
    read_numbers,
    several_values,
)
from adde.shards.catalogues.tables.table import Table, read_table
from adde.shards.catalogues.tables.tabular import TableOptions, table_catalogue
from adde.shards.index import SPLITS
from adde.shards.similarity_lists import SimilarityLists, SplitLists, Triplet

NAMES = {
    "CID": "cid",
    "Category": "class",
    "SubCategory": "subcategory",
    "HeelHeight": "heel",
    "Insole": "insole",
    "Closure": "closure",
    "Gender": "gender",
    "Material": "material",
    "ToeStyle": "toe_style",
}
"""Maps columns to attribute names; four of these are CSN's conditions."""

CONDITIONS = ("class", "closure", "gender", "heel")
SEVERAL = ";"
"""Separates the values of a cell with several."""

Triplets = dict[str, dict[str, list[Triplet]]]
"""By split and condition."""


def zappos(root: Path, images: Path | None, options: TableOptions, size: int) -> Catalogue:
    """Read UT-Zappos50K. If CSN's lists exist, an item's split is that of its triplets.

    Raises:
        UserError: A file is missing or does not follow the module's description, triplets name
            missing pictures, or lists of two splits contain the same item.
    """
    table = read_table(find_list(root, "meta-data.csv"))
    ids = table.column("CID")
    folder = images or _images(root)
    paths = {path.stem.replace(".", "-"): path for path in sorted(folder.rglob("*.jpg"))}
    values = {
        name: [_values(cell) for cell in table.column(given)] for given, name in NAMES.items()
    }
    columns, options, notices = several_values(values, options)
    names = [_name(row, table, paths, folder) for row in range(len(table))]
    triplets = _triplets(root, set(ids))
    options = replace(options, image_column="image", id_column="cid")
    if triplets and (options.split_column or options.group_by):
        triplets = None
        notices.append("the lists of triplets are for other splits, and are left out")
    if triplets:
        columns["split"], unlisted = _splits(triplets, ids)
        options = replace(options, split_column="split")
        notices.append(f"{unlisted} items are in no list of triplets: they become training items")
    table = replace(table, columns={"image": names, **columns})
    source = picture_files(folder, names, table.places, size)
    catalogue = table_catalogue(table, source, options)
    return replace(
        catalogue,
        name="zappos",
        notices=(*catalogue.notices, *notices),
        benchmark=_lists(triplets, catalogue.schema.names) if triplets else None,
    )


def _images(root: Path) -> Path:
    for folder in ("ut-zap50k-images", "ut-zap50k-images-square"):
        if (root / folder).is_dir():
            return root / folder
    raise UserError(f"{root}: expected a folder ut-zap50k-images there, found none; set --images")


def _values(cell: str) -> list[str]:
    return [value for part in cell.split(SEVERAL) if (value := part.strip())]


def _name(row: int, table: Table, paths: Mapping[str, Path], folder: Path) -> str:
    """Return the row's picture relative to the folder; if missing, roughly where it should be."""
    item = table.column("CID")[row]
    if item in paths:
        return str(paths[item].relative_to(folder))
    kind, below = table.column("Category")[row], table.column("SubCategory")[row]
    return f"{kind}/{below}/<brand>/{item.replace('-', '.')}.jpg"


def _triplets(root: Path, ids: set[str]) -> Triplets | None:
    """Return CSN's triplets of all splits as item ids, or None if there are no lists."""
    folders = [f for f in (root / "tripletlists", *root.glob("*/tripletlists")) if f.is_dir()]
    if not folders:
        return None
    pictures = _pictures(find_list(root, "filenames.json"), ids)
    return {
        split: {
            condition: [
                *_read_triplets(folders[0] / f"{condition}_tripletlist_{split}.txt", pictures)
            ]
            for condition in CONDITIONS
        }
        for split in SPLITS
    }


def _pictures(path: Path, ids: set[str]) -> list[str]:
    """Return the item ids of the pictures that filenames.json names."""
    found = [Path(name).stem.replace(".", "-") for name in read_names(path)]
    for number, item in enumerate(found, 1):
        if item not in ids:
            raise UserError(
                f"{path}, line {number}: expected a picture of meta-data.csv, found {item!r}"
            )
    return found


def _read_triplets(path: Path, pictures: Sequence[str]) -> Iterator[Triplet]:
    expected = f"three line numbers of filenames.json from 0 to {len(pictures) - 1}"
    for place, numbers in read_numbers(path, expected):
        if len(numbers) != 3 or max(numbers) >= len(pictures):
            raise UserError(f"{place}: expected {expected}, found {' '.join(map(str, numbers))!r}")
        anchor, far, close = (pictures[number] for number in numbers)
        yield anchor, close, far


def _splits(triplets: Triplets, ids: Sequence[str]) -> tuple[list[str], int]:
    """Return each item's split, and the number of items in no list."""
    split_of: dict[str, str] = {}
    for split, by_condition in triplets.items():
        for condition, entries in by_condition.items():
            for item in (item for triplet in entries for item in triplet):
                if split_of.setdefault(item, split) != split:
                    raise UserError(
                        f"{condition}_tripletlist_{split}.txt: expected items of one split in a "
                        f"list, found {item!r} in one of {split_of[item]!r} too"
                    )
    return [split_of.get(item, "train") for item in ids], sum(i not in split_of for i in ids)


def _lists(triplets: Triplets, attributes: Sequence[str]) -> SimilarityLists:
    """Keep the triplets of val and test; training takes its triplets from the labels."""
    return SimilarityLists(
        {
            split: SplitLists(
                triplets={
                    condition: entries
                    for condition, entries in triplets[split].items()
                    if condition in attributes
                }
            )
            for split in ("val", "test")
        }
    )
