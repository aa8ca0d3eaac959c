"""The layout of Attribute-Specific Embedding Networks (ASEN; Ma et al., AAAI 2020), in which
FashionAI, DARN and DeepFashion are judged by MAP.

`meta.json` names the attributes (ATTRIBUTES) and their values (ATTRIBUTES_VALUES).
`filenames_<set>.txt` has a picture a line; all other files count in its lines from 0, attributes in
ATTRIBUTES, values in the attribute's ATTRIBUTES_VALUES. A line of `label_train.txt` is `picture
attribute value [attribute value ...]`, a line of `query_<set>.txt` and `candidate_<set>.txt`
`picture attribute value`. Sets are train, valid and test.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adde.errors import UserError
from adde.files import open_text, read_json
from adde.schema import UNKNOWN, Attribute, Labels, Schema
from adde.shards.catalogues.catalogue import Items
from adde.shards.catalogues.pictures import PictureFiles
from adde.shards.catalogues.table import Places
from adde.shards.similarity_lists import SimilarityLists, SplitLists

SETS = {"train": "train", "valid": "val", "test": "test"}
"""Theirs, and our split."""


def asen(root: Path, images: Path | None, size: int) -> tuple[Items, SimilarityLists]:
    """Reads a folder of this layout.

    An item that is said to have several values of an attribute has an unknown label, and is
    neither query nor candidate of that attribute.

    Args:
        root: of the files.
        images: folder that the names of pictures start from; `root` if None.
        size: cap on a picture's short side, pixels.

    Raises:
        UserError: a file is missing or is not as the module describes, or a picture stands in two
            sets.
    """
    schema = _schema(root / "meta.json")
    names, splits, places = list[str](), list[str](), list[int]()
    firsts: dict[str, int] = {}
    for theirs, split in SETS.items():
        firsts[theirs] = len(names)
        found = _names(root / f"filenames_{theirs}.txt")
        names += found
        splits += [split] * len(found)
        places += range(1, len(found) + 1)
    _refuse_repeated(names, splits, root)
    labels = _Labels(schema, np.full((len(names), len(schema.names)), UNKNOWN, np.int64))
    rows = {"train": range(firsts["valid"])}
    labels.read(root / "label_train.txt", rows["train"])
    asked = dict[str, dict[str, list[tuple[int, int]]]]()
    for theirs, end in (("valid", firsts["test"]), ("test", len(names))):
        of_set = range(firsts[theirs], end)
        asked[SETS[theirs]] = {
            kind: labels.read(root / f"{kind}_{theirs}.txt", of_set)
            for kind in ("query", "candidate")
        }
    notices = [f"{len(labels.several)} labels with several values are unknown"]
    items = Items(
        name=root.resolve().name,
        schema=schema,
        item_ids=names,
        labels=labels.labels,
        splits=splits,
        pictures=PictureFiles(
            images or root, names, Places(root / "filenames_*.txt", "line", places), size
        ),
        notices=tuple(notices) if labels.several else (),
    )
    lists = {
        split: SplitLists(
            queries=labels.by_attribute(entries["query"], names),
            candidates=labels.by_attribute(entries["candidate"], names),
        )
        for split, entries in asked.items()
    }
    return items, SimilarityLists(lists)


def _schema(path: Path) -> Schema:
    meta: Any = read_json(path)
    try:
        schema = Schema(
            tuple(Attribute(n, tuple(meta["ATTRIBUTES_VALUES"][n])) for n in meta["ATTRIBUTES"])
        )
        sizes = tuple(meta["ATTRIBUTES_NUM"][name] for name in schema.names)
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{path}: expected ATTRIBUTES, ATTRIBUTES_NUM and ATTRIBUTES_VALUES, found no {error}"
        ) from None
    if sizes != schema.sizes:
        raise UserError(
            f"{path}: expected as many values in ATTRIBUTES_VALUES as ATTRIBUTES_NUM says, "
            f"{sizes}, found {schema.sizes}"
        )
    return schema


def _names(path: Path) -> list[str]:
    with open_text(path) as file:
        return [line.strip() for line in file if line.strip()]


def _refuse_repeated(names: Sequence[str], splits: Sequence[str], root: Path) -> None:
    split_of: dict[str, str] = {}
    for name, split in zip(names, splits):
        if name in split_of:
            raise UserError(
                f"{root}: expected every picture once in filenames_*.txt, found {name!r} in "
                f"{split_of[name]} and {split}"
            )
        split_of[name] = split


@dataclass(frozen=True, eq=False)
class _Labels:
    """Labels (N, A) as they are read, and where an item has several values of an attribute."""

    schema: Schema
    labels: Labels
    several: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])

    def read(self, path: Path, rows: range) -> list[tuple[int, int]]:
        """The (row, attribute) of each label in a file whose pictures are these rows."""
        found: dict[tuple[int, int], None] = {}
        for place, numbers in _lines(path):
            picture, *pairs = numbers
            if picture >= len(rows) or not pairs or len(pairs) % 2:
                raise UserError(
                    f"{place}: expected a picture from 0 to {len(rows) - 1} and then attributes "
                    f"with values, found {numbers}"
                )
            for attribute, value in zip(pairs[::2], pairs[1::2]):
                self._add(rows[picture], attribute, value, place)
                found[rows[picture], attribute] = None
        return [*found]

    def _add(self, row: int, attribute: int, value: int, place: str) -> None:
        sizes = self.schema.sizes
        if attribute >= len(sizes) or value >= sizes[attribute]:
            raise UserError(
                f"{place}: expected an attribute and a value of meta.json, found {attribute} "
                f"and {value}"
            )
        if (row, attribute) in self.several:
            return
        if self.labels[row, attribute] not in (UNKNOWN, value):
            self.several.add((row, attribute))
            value = UNKNOWN
        self.labels[row, attribute] = value

    def by_attribute(
        self, entries: Sequence[tuple[int, int]], names: Sequence[str]
    ) -> dict[str, list[str]]:
        """Names of those with a single value, by attribute."""
        found: dict[str, list[str]] = {}
        for row, attribute in entries:
            if (row, attribute) not in self.several:
                found.setdefault(self.schema.names[attribute], []).append(names[row])
        return found


def _lines(path: Path) -> Iterator[tuple[str, list[int]]]:
    """Place and numbers of each line."""
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            place, words = f"{path}, line {number}", line.split()
            if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
                raise UserError(f"{place}: expected whole numbers, found {line.strip()!r}")
            if words:
                yield place, [int(word) for word in words]
