"""DeepFashion's category and attribute prediction benchmark.

The lists may lie in the given folder or one below (Anno/, Eval/), as the archives unpack.
"""

from array import array
from collections.abc import Sequence
from pathlib import Path

from adde.errors import UserError
from adde.files import open_text
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.public.lists import (
    WHOLE_NUMBER,
    catalogue_of_lists,
    find_images,
    find_list,
    look_up,
    read_rows,
    several_values,
)
from adde.shards.catalogues.tables.table import Cells, RowPlaces, Table
from adde.shards.catalogues.tables.tabular import TableOptions

ATTRIBUTE_TYPES = {
    5: ("texture", "fabric", "shape", "part", "style"),
    6: ("texture", "sleeve", "length", "neckline", "fabric", "fit"),
}
"""Types of the 1,000 coarse and of the 26 fine attributes, numbered from 1 in
list_attr_cloth.txt."""


def deepfashion(root: Path, images: Path | None, options: TableOptions, size: int) -> Catalogue:
    """Read the benchmark: the category, and one attribute for each type of attribute.

    An item's label of a type is the set of its attributes of that type.

    Raises:
        UserError: A file is missing, or a line does not follow the dataset's documentation.
    """
    partition = find_list(root, "list_eval_partition.txt")
    splits = {row[0]: row[1] for _, row in read_rows(partition, 2)}
    path = find_list(root, "list_category_img.txt")
    categories = _names(find_list(root, "list_category_cloth.txt"))
    columns = {"image": Cells(), "split": Cells(), "category": Cells()}
    row_of: dict[str, int] = {}
    lines = array("q")
    for line, (name, category) in read_rows(path, 2):
        place = f"{path}, line {line}"
        if not WHOLE_NUMBER.fullmatch(category) or not 1 <= int(category) <= len(categories):
            raise UserError(
                f"{place}: expected a number from 1 to {len(categories)}, found {category!r}"
            )
        row_of[name] = len(row_of)
        columns["image"].append(name)
        columns["split"].append(look_up(splits, name, place, partition))
        columns["category"].append(categories[int(category) - 1][0])
        lines.append(line)
    typed, options, notices = several_values(_typed_attributes(root, row_of), options)
    cells: dict[str, Sequence[str]] = {name: column.cells for name, column in columns.items()}
    table = Table(path, {**cells, **typed}, RowPlaces(path, "line", lines))
    images = images or find_images(root, "Img", table)
    return catalogue_of_lists("deepfashion", table, images, options, size, notices)


def _typed_attributes(root: Path, row_of: dict[str, int]) -> dict[str, list[list[str]]]:
    """Return the values that each item has of each type."""
    attributes = _names(find_list(root, "list_attr_cloth.txt"))
    numbers = {int(number) for _, number in attributes}
    names = ATTRIBUTE_TYPES.get(max(numbers, default=0), ())
    if not numbers or min(numbers) < 1 or not names:
        raise UserError(
            f"{root}: expected attribute types 1 to 5 (coarse) or 1 to 6 (fine) in "
            f"list_attr_cloth.txt, found {sorted(numbers)}"
        )
    typed: dict[str, list[list[str]]] = {name: [[] for _ in row_of] for name in names}
    path = find_list(root, "list_attr_img.txt")
    for line, (image, *flags) in read_rows(path, len(attributes) + 1):
        row = look_up(row_of, image, f"{path}, line {line}", "list_category_img.txt")
        for (value, number), flag in zip(attributes, flags):
            if flag == "1":
                typed[names[int(number) - 1]][row].append(value)
    return typed


def _names(path: Path) -> list[tuple[str, str]]:
    """Return the name and the type number of each line; names may contain spaces."""
    with open_text(path) as file:
        lines = [*file][2:]
    pairs = [line.rsplit(None, 1) for line in lines if line.strip()]
    for number, pair in enumerate(pairs, 3):
        if len(pair) != 2 or not WHOLE_NUMBER.fullmatch(pair[1]):
            raise UserError(f"{path}, line {number}: expected a name and a number, found {pair}")
    return [(name.strip(), number) for name, number in pairs]
