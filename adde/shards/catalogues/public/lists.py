"""Text lists of public data sets: words separated by spaces, one entry per line."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from adde.errors import UserError
from adde.files import open_text
from adde.schema import MAX_MULTIPLE
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.pictures import find_picture, picture_files
from adde.shards.catalogues.tables.table import Table
from adde.shards.catalogues.tables.tabular import TableOptions, table_catalogue

WHOLE_NUMBER = re.compile("[0-9]{1,9}")
"""Digits that always fit an int64. `str.isdigit` would accept ² and numbers of any length."""

Value = TypeVar("Value")


def find_list(root: Path, name: str) -> Path:
    """Return the file of this name in a folder or one below it.

    Archives unpack either way. Raises UserError if there is no such file, or more than one.
    """
    found = [path for path in (root / name, *sorted(root.glob(f"*/{name}"))) if path.is_file()]
    if len(found) == 1:
        return found[0]
    seen = f"found {' and '.join(map(str, found))}; keep one" if found else "found none"
    raise UserError(f"{root}: expected one {name} there or one folder below, {seen}")


def read_names(path: Path) -> list[str]:
    """Return the stripped lines of a file without the empty ones."""
    with open_text(path) as file:
        return [line.strip() for line in file if line.strip()]


def read_numbers(path: Path, expected: str) -> Iterator[tuple[str, list[int]]]:
    """Yield the place and the whole numbers of each line.

    Raises:
        UserError: A word is not a whole number; the message says what was `expected`.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            place, words = f"{path}, line {number}", line.split()
            if not all(map(WHOLE_NUMBER.fullmatch, words)):
                raise UserError(f"{place}: expected {expected}, found {line.strip()!r}")
            if words:
                yield place, [int(word) for word in words]


def read_rows(path: Path, width: int, header: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the words of each line.

    Args:
        path: The list.
        width: Words per line.
        header: Whether the file begins with a line that counts the rows and one that names the
            columns.

    Raises:
        UserError: A line has another number of words, or the count is wrong.
    """
    with open_text(path) as file:
        expected = file.readline().strip() if header else None
        first = 3 if header else 1
        if header:
            file.readline()
        rows = 0
        for number, line in enumerate(file, first):
            words = line.split()
            if not words:
                continue
            if len(words) != width:
                raise UserError(
                    f"{path}, line {number}: expected {width} words, found {len(words)}"
                )
            rows += 1
            yield number, words
    if expected is not None and expected != str(rows):
        raise UserError(
            f"{path}: expected as many rows as its first line says, {expected!r}, found {rows}"
        )


def look_up(known: Mapping[str, Value], key: str, place: str, where: Path | str) -> Value:
    """Return the value of a key, or raise UserError that names the place and the file searched."""
    if key not in known:
        raise UserError(f"{place}: expected {key!r} in {where}, found none")
    return known[key]


def catalogue_of_lists(
    name: str,
    table: Table,
    images: Path,
    options: TableOptions,
    size: int,
    notices: Sequence[str] = (),
) -> Catalogue:
    """Build the catalogue of a data set from its columns `image` and `split`, and its attributes.

    The data set's own splits apply unless the options name another column or a group.
    """
    options = replace(options, image_column="image")
    if not options.group_by and not options.split_column:
        options = replace(options, split_column="split")
    if options.split_column != "split":  # unused, and not an attribute either
        others = {name: cells for name, cells in table.columns.items() if name != "split"}
        table = replace(table, columns=others)
    pictures = picture_files(images, table.column("image"), table.places, size)
    catalogue = table_catalogue(table, pictures, options)
    return replace(catalogue, name=name, notices=(*catalogue.notices, *notices))


def several_values(
    columns: Mapping[str, Sequence[Sequence[str]]], options: TableOptions
) -> tuple[dict[str, Sequence[str]], TableOptions, list[str]]:
    """Keep the cells with several values of a data set's attributes.

    Args:
        columns: The values of each item by attribute.
        options: The columns; `multiple` names further attributes.

    Returns:
        The columns as text, the options with those attributes `multiple` that have such cells, and
        notices. An attribute with too many common values keeps one value per item; its cells with
        several are empty.
    """
    cells: dict[str, Sequence[str]] = {}
    multiple, notices = list[str](options.multiple), list[str]()
    for name, items in columns.items():
        counts = Counter(value for values in items for value in set(values))
        common = sum(count >= options.min_count for count in counts.values())
        several = sum(len(values) > 1 for values in items)
        few = common < MAX_MULTIPLE  # and one is "other"
        wanted = not options.attributes or name in options.attributes
        if several and few and wanted:
            multiple.append(name)
            notices.append(f"attribute {name!r}: {several} items have several values")
        elif several and wanted:
            notices.append(
                f"attribute {name!r}: {several} items have several values, their label is unknown, "
                f"as {common} values are more than an attribute of several values may have; "
                "raise --min-count to merge rare values"
            )
        shown = [values if len(values) < 2 or name in multiple else list[str]() for values in items]
        cells[name] = (
            [json.dumps(values, ensure_ascii=False) if values else "" for values in shown]
            if name in multiple
            else ["".join(values) for values in shown]
        )
    return cells, replace(options, multiple=tuple(dict.fromkeys(multiple))), notices


def find_images(root: Path, folder: str, table: Table) -> Path:
    """Find the pictures: in `folder` below the root or one level deeper, else in the root."""
    for images in (root / folder, *sorted(root.glob(f"*/{folder}"))):
        if any(find_picture(images, name) for name in table.column("image")[:1]):
            return images
    return root
