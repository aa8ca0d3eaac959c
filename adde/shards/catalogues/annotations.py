"""Annotation lists of public datasets as tables: DeepFashion's category and attribute benchmark,
and CelebA.

Their files start with a line that holds a count and a line that names the columns. They may lie
in the folder given or one below it (Anno/, Eval/), as the archives unpack.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from adde.errors import UserError
from adde.files import open_text
from adde.shards.catalogues.catalogue import Items
from adde.shards.catalogues.pictures import PictureFiles, find_picture
from adde.shards.catalogues.table import Cells, Places, Table
from adde.shards.catalogues.tabular import TableOptions, table_catalogue

ATTRIBUTE_TYPES = {
    5: ("texture", "fabric", "shape", "part", "style"),
    6: ("texture", "sleeve", "length", "neckline", "fabric", "fit"),
}
"""What list_attr_cloth.txt numbers from 1: the 1,000 coarse attributes, and the 26 fine ones."""

NUMBER = re.compile("[0-9]{1,6}")

Value = TypeVar("Value")

CELEBA_SPLITS = {"0": "train", "1": "val", "2": "test"}


def deepfashion(root: Path, images: Path | None, options: TableOptions, size: int) -> Items:
    """DeepFashion, category and attribute prediction benchmark.

    Attributes: the category, and one for each type of attribute. An item has a type's value where
    exactly one of its attributes is said to be there; where several are, no single value is right
    and the label is unknown.

    Raises:
        UserError: a file is missing, or a line is not what the dataset's documentation says.
    """
    partition = find_list(root, "list_eval_partition.txt")
    splits = {row[0]: row[1] for _, row in _rows(partition, 2)}
    path = find_list(root, "list_category_img.txt")
    categories = _names(find_list(root, "list_category_cloth.txt"))
    columns = {"image": Cells(), "split": Cells(), "category": Cells()}
    row_of: dict[str, int] = {}
    lines = array("q")
    for line, (name, category) in _rows(path, 2):
        row_of[name] = len(row_of)
        columns["image"].append(name)
        columns["split"].append(_looked_up(splits, name, f"{path}, line {line}", partition))
        columns["category"].append(_listed(categories, category, f"{path}, line {line}")[0])
        lines.append(line)
    typed, several = _typed_attributes(root, row_of)
    cells: dict[str, Sequence[str]] = {name: column.cells for name, column in columns.items()}
    table = Table(path, {**cells, **typed}, Places(path, "line", lines))
    told = (
        f"attribute {name!r}: {count} items show several values, their label is unknown"
        for name, count in several.items()
    )
    return _of_lists(
        "deepfashion", table, images or _images(root, "Img", table), options, size, told
    )


def _typed_attributes(
    root: Path, row_of: dict[str, int]
) -> tuple[dict[str, list[str]], Counter[str]]:
    """Cells of each type of attribute, "" where none or several are there; how often several."""
    attributes = _names(find_list(root, "list_attr_cloth.txt"))
    numbers = {int(number) for _, number in attributes}
    names = ATTRIBUTE_TYPES.get(max(numbers, default=0), ())
    if not numbers or min(numbers) < 1 or not names:
        raise UserError(
            f"{root}: expected attribute types 1 to 5 (coarse) or 1 to 6 (fine) in "
            f"list_attr_cloth.txt, found {sorted(numbers)}"
        )
    typed = {name: [""] * len(row_of) for name in names}
    several: Counter[str] = Counter()
    path = find_list(root, "list_attr_img.txt")
    for line, (image, *flags) in _rows(path, len(attributes) + 1):
        row = _looked_up(row_of, image, f"{path}, line {line}", "list_category_img.txt")
        shown: dict[str, list[str]] = {}
        for (value, number), flag in zip(attributes, flags):
            if flag == "1":
                shown.setdefault(names[int(number) - 1], []).append(value)
        for name, values in shown.items():
            if len(values) == 1:
                typed[name][row] = values[0]
            else:
                several[name] += 1
    return typed, several


def celeba(root: Path, images: Path | None, options: TableOptions, size: int) -> Items:
    """CelebA: forty attributes with the values "no" and "yes", in its own splits.

    With identity_CelebA.txt items can be kept together by --group-by identity. An attribute that
    all training items have, or none, is left out with a notice.

    Raises:
        UserError: a file is missing, or a line is not what the dataset's documentation says.
    """
    path, partition = find_list(root, "list_attr_celeba.txt"), "list_eval_partition.txt"
    splits = dict(row for _, row in _rows(find_list(root, partition), 2, header=False))
    with open_text(path) as file:
        file.readline()
        names = file.readline().split()
    if ours := {"image", "split", "identity"} & set(names):
        raise UserError(f"{path}, line 2: expected names of attributes, found {sorted(ours)[0]!r}")
    columns = {name: Cells() for name in ("image", "split", *names)}
    identities = _identities(root) if options.group_by == "identity" else {}
    if identities:
        columns["identity"] = Cells()
    lines = array("q")
    for line, (image, *flags) in _rows(path, len(names) + 1):
        place = f"{path}, line {line}"
        split = _looked_up(splits, image, place, partition)
        columns["image"].append(image)
        columns["split"].append(_looked_up(CELEBA_SPLITS, split, place, partition))
        for name, flag in zip(names, flags):
            columns[name].append(_looked_up({"1": "yes", "-1": "no"}, flag, place, name))
        if identities:
            columns["identity"].append(identities.get(image, ""))
        lines.append(line)
    cells = {name: column.cells for name, column in columns.items()}
    table = Table(path, cells, Places(path, "line", lines))
    folder = images or _images(root, "img_align_celeba", table)
    return _of_lists("celeba", table, folder, options, size, ())


def _identities(root: Path) -> dict[str, str]:
    try:
        path = find_list(root, "identity_CelebA.txt")
    except UserError:
        return {}
    return dict(row for _, row in _rows(path, 2, header=False))


def _of_lists(
    name: str,
    table: Table,
    images: Path,
    options: TableOptions,
    size: int,
    told: Iterator[str] | tuple[()],
) -> Items:
    options = replace(options, image_column="image")
    if not options.group_by and not options.split_column:
        options = replace(options, split_column="split")
    if options.split_column != "split":  # it is not used, and no attribute
        others = {name: cells for name, cells in table.columns.items() if name != "split"}
        table = replace(table, columns=others)
    pictures = PictureFiles(images, table.column("image"), table.places, size)
    items = table_catalogue(table, pictures, options)
    return replace(items, name=name, notices=(*items.notices, *told))


def find_list(root: Path, name: str) -> Path:
    """The file of this name in a folder or one below it. Raises UserError at none or several."""
    found = [path for path in (root / name, *sorted(root.glob(f"*/{name}"))) if path.is_file()]
    if len(found) == 1:
        return found[0]
    seen = f"found {' and '.join(map(str, found))}; keep one" if found else "found none"
    raise UserError(f"{root}: expected one {name} there or one folder below, {seen}")


def _images(root: Path, folder: str, table: Table) -> Path:
    """Where the first picture is: in `folder` below the root or one below it, else the root."""
    for images in (root / folder, *sorted(root.glob(f"*/{folder}"))):
        if any(find_picture(images, name) for name in table.column("image")[:1]):
            return images
    return root


def _names(path: Path) -> list[tuple[str, str]]:
    """Name and type number of each line; names may hold spaces."""
    with open_text(path) as file:
        lines = [*file][2:]
    pairs = [line.rsplit(None, 1) for line in lines if line.strip()]
    for number, pair in enumerate(pairs, 3):
        if len(pair) != 2 or not NUMBER.fullmatch(pair[1]):
            raise UserError(f"{path}, line {number}: expected a name and a number, found {pair}")
    return [(name.strip(), number) for name, number in pairs]


def _rows(path: Path, width: int, header: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of each line; the count in the first must hold."""
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


def _looked_up(known: dict[str, Value], key: str, place: str, where: Path | str) -> Value:
    if key not in known:
        raise UserError(f"{place}: expected {key!r} in {where}, found none")
    return known[key]


def _listed(names: list[tuple[str, str]], number: str, place: str) -> tuple[str, str]:
    if not NUMBER.fullmatch(number) or not 1 <= int(number) <= len(names):
        raise UserError(f"{place}: expected a number from 1 to {len(names)}, found {number!r}")
    return names[int(number) - 1]
