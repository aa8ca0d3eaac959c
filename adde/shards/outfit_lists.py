"""Outfits that come with a data set, and questions about them.

Layout of outfits.json::

    {"schema_hash": "...", "category": "category",
     "outfits": {"train": [[item ids], ...], "val": ..., "test": ...},
     "blanks": {"test": [[[item ids], [answers], number of the right answer], ...]},
     "judged": {"test": [[whether it fits, [item ids]], ...]},
     "fine": {item id: name}, "oracle": {"prior": [...], "values": [...]}}

`category` is the attribute with the kind of an item. `fine` optionally gives a finer kind for
retrieval, and `oracle` the tables from which outfits were drawn. An outfit may contain items of
other splits, as Polyvore's non-disjoint outfits do.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from adde.errors import UserError
from adde.metrics import Figures
from adde.outfits import Blank, OutfitBenchmark, StyleScorer, hide_items
from adde.schema import UNKNOWN, Labels, Rows, Schema
from adde.shards.benchmark_lists import OUTFITS_NAME, FindRows, read_benchmark, row_finder

Items = Sequence[str]
"""Item ids."""


class BlankList(NamedTuple):
    """A fill-in-the-blank question: the remaining items, the answers, and the right one's index."""

    outfit: Items
    answers: Items
    truth: int


class Judged(NamedTuple):
    """A real outfit, or a random one for comparison."""

    fits: bool
    outfit: Items


class StyleTables(NamedTuple):
    """The tables from which outfits were drawn; see `adde.outfits.StyleScorer.of_tables`."""

    prior: Figures
    values: Figures


@dataclass(frozen=True)
class OutfitLists:
    """Outfits and questions by split; see `adde.shards.benchmark_lists.BenchmarkLists`."""

    FILE_NAME: ClassVar[str] = OUTFITS_NAME

    category: str
    outfits: Mapping[str, Sequence[Items]]
    blanks: Mapping[str, Sequence[BlankList]] = field(
        default_factory=dict[str, Sequence[BlankList]]
    )
    judged: Mapping[str, Sequence[Judged]] = field(default_factory=dict[str, Sequence[Judged]])
    fine: Mapping[str, str] = field(default_factory=dict[str, str])
    oracle: StyleTables | None = None

    def __len__(self) -> int:
        by_kind = (self.outfits, self.blanks, self.judged)
        return sum(len(entries) for of_kind in by_kind for entries in of_kind.values())

    def content(self) -> dict[str, Any]:
        """Return the entries as JSON."""
        oracle = self.oracle and {name: t.tolist() for name, t in self.oracle._asdict().items()}
        return {**vars(self), "oracle": oracle}

    @classmethod
    def from_json(cls, value: Any, source: Path) -> "OutfitLists":
        """Read the result of `content`; `source` names the file in errors."""
        try:
            oracle = value["oracle"]
            return cls(
                value["category"],
                {**value["outfits"]},
                {split: [BlankList(*e) for e in found] for split, found in value["blanks"].items()},
                {split: [Judged(*e) for e in found] for split, found in value["judged"].items()},
                value["fine"],
                oracle and StyleTables(np.array(oracle["prior"]), np.array(oracle["values"])),
            )
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise UserError(
                f"{source}: expected outfits and questions, found: {type(error).__name__} {error}; "
                "build the shards again"
            ) from None

    def kept(self, item_ids: Collection[str]) -> "OutfitLists":
        """Return the outfits and questions whose items are all among `item_ids`."""
        known = set(item_ids)
        return OutfitLists(
            self.category,
            {
                split: [outfit for outfit in outfits if known.issuperset(outfit)]
                for split, outfits in self.outfits.items()
            },
            {
                split: [b for b in blanks if known.issuperset((*b.outfit, *b.answers))]
                for split, blanks in self.blanks.items()
            },
            {
                split: [entry for entry in judged if known.issuperset(entry.outfit)]
                for split, judged in self.judged.items()
            },
            {item: name for item, name in self.fine.items() if item in known},
            self.oracle,
        )


def outfit_fault(items: Items, least: int = 2) -> str | None:
    """Return what is wrong with an outfit, or None if it is usable."""
    if len(items) < least:
        things = "items" if least > 1 else "item"
        return f"expected an outfit of at least {least} {things}, found {len(items)}"
    twice = [item for number, item in enumerate(items) if item in items[:number]]
    return f"expected each item once, found {twice[0]!r} twice" if twice else None


def blank_fault(blank: BlankList) -> str | None:
    """Return what is wrong with a fill-in-the-blank question, or None if it is usable."""
    if fault := outfit_fault(blank.outfit, 1):
        return fault
    if len(blank.answers) < 2:
        return f"expected at least 2 answers, found {len(blank.answers)}"
    if not 0 <= blank.truth < len(blank.answers):
        return "expected one answer to be the item that was taken out, found none or several"
    return None


@dataclass(frozen=True, eq=False)
class OutfitData:
    """Outfits as rows of items, and the questions about one split.

    Attributes:
        categories: (N,) int64 labels of the attribute `category`; UNKNOWN for items in no outfit.
        category: Index of that attribute.
        outfits: Rows of the items of each outfit, by split.
        benchmark: The questions about the requested split.
        oracle: The best possible scorer, if outfits were drawn from known tables.
    """

    categories: Rows
    category: int
    outfits: Mapping[str, Sequence[Rows]]
    benchmark: OutfitBenchmark
    oracle: StyleScorer | None


def read_outfits(
    folder: Path, schema: Schema, split: str, item_ids: Sequence[str], labels: Labels
) -> OutfitData | None:
    """Return the outfits and the questions of a split, or None if the data set has none.

    Args:
        folder: Folder of the shards.
        schema: Schema of the shards.
        split: Split of the questions.
        item_ids: N ids of all splits, in the order of the rows.
        labels: (N, A) int64.

    Raises:
        UserError: The file is damaged, belongs to another schema or has no outfits of the split; an
            outfit or a question is invalid, or names an item that is missing or has no category.
    """
    path = folder / OUTFITS_NAME
    content = read_benchmark(path, schema)
    if content is None:
        return None
    lists = OutfitLists.from_json(content, path)
    if not lists.outfits.get(split):
        raise UserError(f"{path}: expected outfits of split {split!r}, found none")
    if lists.category not in schema.names:
        raise UserError(f"{path}: expected a category of the schema, found {lists.category!r}")
    category = schema.attribute_index(lists.category)
    categories = labels[:, category]
    rows = _Rows(path, row_finder(path, item_ids), lists.category, categories)
    outfits = {
        name: [rows.of(outfit, f"outfit {number} of {name}") for number, outfit in enumerate(found)]
        for name, found in lists.outfits.items()
    }
    judged = [
        (entry.fits, rows.of(entry.outfit, f"outfit {number} judged of {split}"))
        for number, entry in enumerate(lists.judged.get(split, ()))
    ]
    kinds = _kinds(categories, lists.fine, item_ids)
    benchmark = OutfitBenchmark(
        [
            rows.of_blank(blank, f"blank {number} of {split}")
            for number, blank in enumerate(lists.blanks.get(split, ()))
        ],
        [outfit for fits, outfit in judged if fits],
        [outfit for fits, outfit in judged if not fits],
        hide_items(outfits[split], item_ids, kinds),
        kinds,
    )
    oracle = lists.oracle and StyleScorer.of_tables(*lists.oracle, labels, categories, schema)
    return OutfitData(categories, category, outfits, benchmark, oracle)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Looks up the rows of items and checks outfits; `where` is the place in the file."""

    path: Path
    find_rows: FindRows
    category: str
    categories: Rows

    def of(self, items: Items, where: str) -> Rows:
        """Return the rows of an outfit."""
        return self._checked(items, where, outfit_fault(items))

    def of_blank(self, blank: BlankList, where: str) -> Blank:
        """Return a fill-in-the-blank question as rows."""
        outfit = self._checked(blank.outfit, where, blank_fault(blank))
        return Blank(outfit, self._checked(blank.answers, where, None), blank.truth)

    def _checked(self, items: Items, where: str, fault: str | None) -> Rows:
        rows = np.array(self.find_rows(items, where), np.int64)
        unknown = self.categories[rows] == UNKNOWN
        if fault is None and unknown.any():
            item = items[int(unknown.argmax())]
            fault = f"expected every item's {self.category}, found none of {item!r}"
        if fault:
            raise UserError(f"{self.path}, {where}: {fault}; build the shards again")
        return rows


def _kinds(categories: Rows, fine: Mapping[str, str], item_ids: Sequence[str]) -> Rows:
    """Return (N,) int64: the finer kinds of items if the file has any, else their categories."""
    if not fine:
        return categories
    numbers = {name: number for number, name in enumerate(sorted(set(fine.values())))}
    return np.array([numbers.get(fine.get(item, ""), UNKNOWN) for item in item_ids], np.int64)
