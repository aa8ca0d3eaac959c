"""The layout of Attribute-Specific Embedding Networks (ASEN; Ma et al., AAAI 2020), in which
FashionAI, DARN and DeepFashion are evaluated by MAP.

`meta.json` names the attributes (ATTRIBUTES) and their values (ATTRIBUTES_VALUES).
`filenames_<set>.txt` names one picture per line. All other files refer to its lines, to ATTRIBUTES
and to the attribute's ATTRIBUTES_VALUES by number, from 0. A line of `label_train.txt` is
`picture attribute value [attribute value ...]`; a line of `query_<set>.txt` and of
`candidate_<set>.txt` is `picture attribute value`. Sets are train, valid and test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adde.errors import UserError
from adde.files import read_json
from adde.schema import UNKNOWN, Attribute, Labels, Schema
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.pictures import picture_files
from adde.shards.catalogues.public.lists import read_names, read_numbers
from adde.shards.catalogues.tables.table import RowPlaces
from adde.shards.similarity_lists import SimilarityLists, SplitLists

SETS = {"train": "train", "valid": "val", "test": "test"}
"""Maps the layout's names of the splits to ours."""


def asen(root: Path, images: Path | None, size: int) -> Catalogue:
    """Read a folder of this layout.

    An item with several values of one attribute gets an unknown label, and is neither a query nor a
    candidate of that attribute.

    Args:
        root: The folder of the files.
        images: The folder that the names of pictures start from; `root` if None.
        size: Cap on a picture's short side, pixels.

    Raises:
        UserError: A file is missing or does not follow the layout, or a picture is in two sets.
    """
    schema = _schema(root / "meta.json")
    names, splits, lines = list[str](), list[str](), list[int]()
    rows: dict[str, range] = {}
    for theirs, split in SETS.items():
        found = read_names(root / f"filenames_{theirs}.txt")
        rows[theirs] = range(len(names), len(names) + len(found))
        names += found
        splits += [split] * len(found)
        lines += range(1, len(found) + 1)
    _reject_repeated(names, splits, root)
    labels = _LabelReader(schema, np.full((len(names), len(schema.names)), UNKNOWN, np.int64))
    labels.read(root / "label_train.txt", rows["train"])
    asked = {
        (kind, theirs): labels.read(root / f"{kind}_{theirs}.txt", rows[theirs])
        for theirs in ("valid", "test")
        for kind in ("query", "candidate")
    }
    # Only after all files are read is it known which labels have several values.
    lists = {
        SETS[theirs]: SplitLists(
            queries=labels.by_attribute(asked["query", theirs], names),
            candidates=labels.by_attribute(asked["candidate", theirs], names),
        )
        for theirs in ("valid", "test")
    }
    places = RowPlaces(root / "filenames_*.txt", "line", lines)
    several = f"{len(labels.several)} labels with several values are unknown"
    return Catalogue(
        name=root.resolve().name,
        schema=schema,
        item_ids=names,
        labels=labels.labels,
        splits=splits,
        source=picture_files(images or root, names, places, size),
        notices=(several,) if labels.several else (),
        benchmark=SimilarityLists(lists),
    )


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


def _reject_repeated(names: Sequence[str], splits: Sequence[str], root: Path) -> None:
    split_of: dict[str, str] = {}
    for name, split in zip(names, splits):
        if name in split_of:
            raise UserError(
                f"{root}: expected every picture once in filenames_*.txt, found {name!r} in "
                f"{split_of[name]} and {split}"
            )
        split_of[name] = split


@dataclass(frozen=True, eq=False)
class _LabelReader:
    """Labels (N, A), filled file by file, and the labels for which files give several values."""

    schema: Schema
    labels: Labels
    several: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])

    def read(self, path: Path, rows: range) -> list[tuple[int, int]]:
        """Read a file about the pictures `rows`; return the (row, attribute) of each label."""
        found: dict[tuple[int, int], None] = {}
        for place, numbers in read_numbers(path, "whole numbers"):
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
        """Return the names of the items with a single value, by attribute."""
        found: dict[str, list[str]] = {}
        for row, attribute in entries:
            if (row, attribute) not in self.several:
                found.setdefault(self.schema.names[attribute], []).append(names[row])
        return found
