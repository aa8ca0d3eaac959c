"""UT-Zappos50K, and the triplets of Conditional Similarity Networks (CSN; Veit et al., CVPR 2017).

`ut-zap50k-data/meta-data.csv` has a row for each shoe. Picture 100627-72 is
`ut-zap50k-images/<Category>/<SubCategory>/<brand>/100627.72.jpg`; the brand is not in the table.

CSN's files lie beside it or one folder below: `filenames.json`, which is no JSON but one path of a
picture a line, and `tripletlists/<condition>_tripletlist_<split>.txt`, whose lines are three line
numbers of `filenames.json`, from 0. Their order is ANCHOR, FAR, CLOSE, and not the anchor,
positive, negative that most lists of triplets have.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adde.errors import UserError
from adde.files import open_text
from adde.shards.catalogues.annotations import find_list
from adde.shards.catalogues.catalogue import Items
from adde.shards.catalogues.pictures import PictureFiles
from adde.shards.catalogues.table import Table, read_table
from adde.shards.catalogues.tabular import TableOptions, table_catalogue
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
"""Columns, and what they are called here: as CSN's conditions where they are one."""

CONDITIONS = ("class", "closure", "gender", "heel")
SEVERAL = ";"
"""Between the values of a cell that has several."""

Triplets = dict[str, dict[str, list[Triplet]]]
"""By split and condition."""


def zappos(
    root: Path, images: Path | None, options: TableOptions, size: int
) -> tuple[Items, SimilarityLists | None]:
    """Reads UT-Zappos50K. Where CSN's lists are there, an item's split is that of its triplets.

    A cell with several values is unknown: no single one is right.

    Raises:
        UserError: a file is missing or is not as the module describes, triplets name pictures
            that are not there, or an item stands in lists of two splits.
    """
    table = read_table(find_list(root, "meta-data.csv"))
    ids = table.column("CID")
    folder = images or _images(root)
    paths = {path.stem.replace(".", "-"): path for path in sorted(folder.rglob("*.jpg"))}
    columns, several = _columns(table)
    names = [_name(row, table, paths, folder) for row in range(len(table))]
    triplets = _triplets(root, set(ids))
    told = [
        f"attribute {name!r}: {count} items of several values" for name, count in several.items()
    ]
    options = replace(options, image_column="image", id_column="cid")
    if triplets and (options.split_column or options.group_by):
        triplets = None
        told.append("the lists of triplets are of other splits, and are left out")
    if triplets:
        columns["split"], loose = _splits(triplets, ids)
        options = replace(options, split_column="split")
        told.append(f"{loose} items are in no list of triplets: they are training items")
    table = replace(table, columns={"image": names, **columns})
    items = table_catalogue(table, PictureFiles(folder, names, table.places, size), options)
    items = replace(items, name="zappos", notices=(*items.notices, *told))
    return items, _lists(triplets, items) if triplets else None


def _images(root: Path) -> Path:
    for folder in ("ut-zap50k-images", "ut-zap50k-images-square"):
        if (root / folder).is_dir():
            return root / folder
    raise UserError(f"{root}: expected a folder ut-zap50k-images there, found none; set --images")


def _columns(table: Table) -> tuple[dict[str, Sequence[str]], Counter[str]]:
    """The columns by our names, "" where a cell has several values; how often that was."""
    several: Counter[str] = Counter()
    columns: dict[str, Sequence[str]] = {}
    for given, name in NAMES.items():
        cells = table.column(given)
        if found := sum(SEVERAL in cell for cell in cells):
            several[name] = found
        columns[name] = ["" if SEVERAL in cell else cell for cell in cells]
    return columns, several


def _name(row: int, table: Table, paths: Mapping[str, Path], folder: Path) -> str:
    """The row's picture below the folder; where there is none, about where it should be."""
    item = table.column("CID")[row]
    if item in paths:
        return str(paths[item].relative_to(folder))
    kind, below = table.column("Category")[row], table.column("SubCategory")[row]
    return f"{kind}/{below}/<brand>/{item.replace('-', '.')}.jpg"


def _triplets(root: Path, ids: set[str]) -> Triplets | None:
    """CSN's triplets of all splits as item ids; None where there are no lists."""
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
    """Item ids of the pictures that filenames.json names."""
    with open_text(path) as file:
        found = [Path(line.strip()).stem.replace(".", "-") for line in file if line.strip()]
    for number, item in enumerate(found, 1):
        if item not in ids:
            raise UserError(
                f"{path}, line {number}: expected a picture of meta-data.csv, found {item!r}"
            )
    return found


def _read_triplets(path: Path, pictures: Sequence[str]) -> Iterator[Triplet]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            words = line.split()
            if not words:
                continue
            if len(words) != 3 or not all(_is_place(word, len(pictures)) for word in words):
                raise UserError(
                    f"{path}, line {number}: expected three line numbers of filenames.json from 0 "
                    f"to {len(pictures) - 1}, found {line.strip()!r}"
                )
            anchor, far, close = (pictures[int(word)] for word in words)
            yield anchor, close, far


def _is_place(word: str, count: int) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 10 and int(word) < count


def _splits(triplets: Triplets, ids: Sequence[str]) -> tuple[list[str], int]:
    """Each item's split, and how many items are in no list."""
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


def _lists(triplets: Triplets, items: Items) -> SimilarityLists:
    """Those of val and test; training takes its triplets from the labels."""
    return SimilarityLists(
        {
            split: SplitLists(
                triplets={
                    condition: entries
                    for condition, entries in triplets[split].items()
                    if condition in items.schema.names
                }
            )
            for split in ("val", "test")
        }
    )
