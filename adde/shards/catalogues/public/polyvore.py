"""Polyvore Outfits (Vasileva et al., ECCV 2018): items, outfits, and questions about them.

The given folder is `disjoint` or `nondisjoint` of the published data set. It holds
`{train,valid,test}.json`, `fill_in_blank_<set>.json` and `compatibility_<set>.txt`. Its parent
holds `images/<item>.jpg`, `polyvore_item_metadata.json` and `categories.csv` (id, fine, coarse).
Questions name items as `<outfit>_<index>`. The right answer to a question is the one from the same
outfit; its position means nothing, although it is often the first in the released files.
`typespaces.p` is not read: it is a pickle, which could run any code.
"""

import csv
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from adde.errors import UserError
from adde.files import open_text, read_json
from adde.schema import Attribute, Schema
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.pictures import picture_files
from adde.shards.catalogues.tables.table import Faults
from adde.shards.outfit_lists import BlankList, Judged, OutfitLists, blank_fault, outfit_fault

KINDS = ("disjoint", "nondisjoint")
SETS = {"train": "train", "valid": "val", "test": "test"}
"""Maps the data set's names of the splits to ours."""
METADATA = "polyvore_item_metadata.json"
CATEGORIES = "categories.csv"
CATEGORY = "category"


def polyvore(root: Path, images: Path | None, size: int, skip: bool = False) -> Catalogue:
    """Read one of the two kinds of splits.

    Non-disjoint splits share items. A shared item belongs to the first of train, val and test whose
    outfits contain it.

    Args:
        root: The folder `disjoint` or `nondisjoint`.
        images: The folder of the pictures; `images` next to `root` if None.
        size: Cap on a picture's short side, pixels.
        skip: Leave out unusable outfits and questions instead of raising.

    Raises:
        UserError: A file is missing or does not follow the module's description; an outfit or a
            question is unusable (fewer than two items, an item twice, no right answer) and `skip`
            is False; or disjoint splits share an item.
    """
    if root.name not in KINDS:
        raise UserError(
            f"polyvore:{root}: expected the folder of a kind of splits, "
            f"{root / KINDS[0]} or {root / KINDS[1]}"
        )
    faults = Faults(root)
    outfits, item_of = dict[str, list[list[str]]](), dict[str, dict[str, str]]()
    blanks, judged = dict[str, list[BlankList]](), dict[str, list[Judged]]()
    for theirs, split in SETS.items():
        outfits[split], item_of[split] = _outfits(root / f"{theirs}.json", faults)
        if split != "train":
            path = root / f"fill_in_blank_{theirs}.json"
            blanks[split] = _blanks(path, item_of[split], faults)
            path = root / f"compatibility_{theirs}.txt"
            judged[split] = _judged(path, item_of[split], faults)
    left_out = faults.settle(skip)
    split_of, shared = _splits(outfits, judged, root)
    names = [*split_of]
    coarse, fine = _categories(root.parent, names)
    values = tuple(sorted(set(coarse)))
    return Catalogue(
        name=f"polyvore-{root.name}",
        schema=Schema((Attribute(CATEGORY, values),)),
        item_ids=names,
        labels=np.array([[values.index(name)] for name in coarse], np.int64),
        splits=[*split_of.values()],
        source=picture_files(
            images or root.parent / "images",
            [f"{name}.jpg" for name in names],
            [f"{root}, item {name}" for name in names],
            size,
        ),
        notices=(*left_out, *shared),
        benchmark=OutfitLists(CATEGORY, outfits, blanks, judged, dict(zip(names, fine))),
    )


def _outfits(path: Path, faults: Faults) -> tuple[list[list[str]], dict[str, str]]:
    """Return the item ids of each outfit, and the item of each name that questions use."""
    outfits, item_of = list[list[str]](), dict[str, str]()
    for number, entry in enumerate(_entries(path)):
        place = f"{path}, outfit {number}"
        with _fields(place, "set_id, and items with item_id and index"):
            name, items = entry["set_id"], entry["items"]
            ids = [str(item["item_id"]) for item in items]
            item_of |= {f"{name}_{item['index']}": i for item, i in zip(items, ids)}
        if fault := outfit_fault(ids):
            faults.add(f"{place} ({name})", fault)
        else:
            outfits.append(ids)
    return outfits, item_of


def _blanks(path: Path, item_of: Mapping[str, str], faults: Faults) -> list[BlankList]:
    found: list[BlankList] = []
    for number, entry in enumerate(_entries(path)):
        place = f"{path}, question {number}"
        with _fields(place, "question and answers"):
            question, answers = [*entry["question"]], [*entry["answers"]]
        fault = _unknown((*question, *answers), item_of)
        if not fault:
            outfits = {_outfit_of(name) for name in question}
            right = [i for i, name in enumerate(answers) if {_outfit_of(name)} == outfits]
            items = [item_of[name] for name in question], [item_of[name] for name in answers]
            found.append(BlankList(*items, right[0] if len(right) == 1 else -1))
            fault = blank_fault(found[-1])
        if fault:
            faults.add(place, fault)
    return [blank for blank in found if not blank_fault(blank)]


def _judged(path: Path, item_of: Mapping[str, str], faults: Faults) -> list[Judged]:
    found: list[Judged] = []
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            fits, *names = line.split() or [""]
            if not fits:
                continue
            fault = None if fits in ("0", "1") else f"expected 0 or 1 first, found {fits!r}"
            fault = fault or _unknown(names, item_of)
            ids = [item_of.get(name, "") for name in names]
            if fault := fault or outfit_fault(ids):
                faults.add(f"{path}, line {number}", fault)
            else:
                found.append(Judged(fits == "1", ids))
    return found


def _outfit_of(name: str) -> str:
    return name.rpartition("_")[0]


def _unknown(names: Iterable[str], item_of: Mapping[str, str]) -> str | None:
    unknown = [name for name in names if name not in item_of]
    return f"expected items of the set's outfits, found {unknown[0]!r}" if unknown else None


def _splits(
    outfits: Mapping[str, Sequence[Sequence[str]]],
    judged: Mapping[str, Sequence[Judged]],
    root: Path,
) -> tuple[dict[str, str], list[str]]:
    """Return the split of each item, and notices about items that several splits share.

    Raises:
        UserError: The folder is `disjoint`, but splits share items.
    """
    split_of: dict[str, str] = {}
    notices: list[str] = []
    for split, entries in outfits.items():
        of_split = {item for outfit in entries for item in outfit}
        of_split |= {item for entry in judged.get(split, ()) for item in entry.outfit}
        known = sorted(item for item in of_split if item in split_of)
        if known and root.name == "disjoint":
            raise UserError(
                f"{root}: expected no item in two sets, as its name says, found {len(known)} items "
                f"of {split} in others, such as {known[0]!r} in {split_of[known[0]]}; training "
                "would see test items"
            )
        if known:
            notices.append(
                f"{len(known):,} of {len(of_split):,} items of {split} outfits are in outfits of "
                "other splits, and stored there"
            )
        split_of |= {item: split for item in sorted(of_split) if item not in split_of}
    return split_of, notices


def _categories(folder: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the coarse and the fine category of each item."""
    path = folder / METADATA
    metadata: Any = read_json(path)
    # The table only names the fine categories; the metadata assigns them.
    with open_text(folder / CATEGORIES, newline="") as file:
        name_of = {row[0]: row[1] for row in csv.reader(file) if len(row) >= 2}
    coarse, fine = list[str](), list[str]()
    for name in names:
        with _fields(f"{path}, item {name}", "semantic_category and category_id of every item"):
            entry = metadata[name]
            coarse.append(str(entry["semantic_category"]))
            number = str(entry["category_id"])
        fine.append(f"{name_of.get(number, '')} ({number})".strip())
    return coarse, fine


def _entries(path: Path) -> list[Any]:
    content: Any = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list, found {type(content).__name__}")
    return cast(list[Any], content)


@contextmanager
def _fields(place: str, expected: str) -> Generator[None]:
    try:
        yield
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{place}: expected {expected}, found no {error}") from None
