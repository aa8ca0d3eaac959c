"""FashionAI's attribute data set as published: `Annotations/label.csv`, in the given folder or one
below, as its two archives unpack.

The file has no header. A row is `Images/<task>/<md5>.jpg,<task>,<flags>`; the path is relative to
the folder that holds `Annotations`. Each picture is labelled for a single attribute. Its flags are
one letter per value: y if the picture shows the value, n if not, and m for "maybe", read as n.
"""

import csv
import re
from pathlib import Path

import numpy as np

from adde.errors import UserError
from adde.files import open_text
from adde.schema import UNKNOWN, Attribute, Schema
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.pictures import picture_files
from adde.shards.catalogues.tables.splits import require_items, splits_by_hash

LABEL_FILE = "Annotations/label.csv"
ENDING = "_labels"
"""End of a task's name that is not part of the attribute's."""

FLAGS = re.compile("[ynm]+")

VALUES = {
    "skirt_length": "Invisible|Short|Knee|Midi|Ankle|Floor",
    "sleeve_length": "Invisible|Sleeveless|Cup|Short|Elbow|3/4|Wrist|Long|Extra Long",
    "coat_length": "Invisible|High Waist|Regular|Long|Micro|Knee|Midi|Ankle&Floor",
    "pant_length": "Invisible|Short|Mid|3/4|Cropped|Full",
    "collar_design": "Invisible|Shirt|Peter Pan|Puritan|Rib",
    "lapel_design": "Invisible|Notched|Collarless|Shawl|Plus Size Shawl",
    "neckline_design": "Invisible|Strapless|Deep V|Straight|V|Square|Off Shoulder|Round"
    "|Sweetheart|One Shoulder",
    "neck_design": "Invisible|Turtle|Ruffle Semi-High|Low Turtle|Draped",
}
"""Names of the values in the order of the flags; "Invisible" is an ordinary value."""


def fashionai(
    root: Path, images: Path | None, val_share: float, test_share: float, size: int
) -> Catalogue:
    """Read FashionAI; a hash of the picture's name decides the split.

    Args:
        root: The folder; see the module.
        images: The folder that the names of pictures start from; that of each table if None.
        val_share: Share of the items.
        test_share: Share of the items.
        size: Cap on a picture's short side, pixels.

    Raises:
        UserError: There is no table, or a line does not follow the module's description.
    """
    tables = sorted((*root.glob(LABEL_FILE), *root.glob(f"*/{LABEL_FILE}")))
    if not tables:
        raise UserError(f"{root}: expected {LABEL_FILE} there or one folder below, found none")
    names, tasks, labels, places = list[str](), list[str](), list[int](), list[str]()
    sizes: dict[str, int] = {}
    for table in tables:
        below = table.parent.parent.relative_to(root)
        with open_text(table, newline="") as file:
            for row in (rows := csv.reader(file)):
                place = f"{table}, line {rows.line_num}"
                name, attribute, label, size_found = _row(row, place)
                if sizes.setdefault(attribute, size_found) != size_found:
                    raise UserError(
                        f"{place}: expected {sizes[attribute]} flags as other rows of "
                        f"{attribute!r} have, found {size_found}"
                    )
                names.append(name if images else str(below / name))
                tasks.append(attribute)
                labels.append(label)
                places.append(place)
    schema = Schema(tuple(Attribute(n, _values(n, count)) for n, count in sorted(sizes.items())))
    splits = splits_by_hash(names, val_share, test_share)
    require_items(splits, val_share, test_share, str(root))
    every = np.full((len(names), len(schema.names)), UNKNOWN, np.int64)
    every[np.arange(len(names)), [schema.names.index(task) for task in tasks]] = labels
    source = picture_files(images or root, names, places, size)
    return Catalogue("fashionai", schema, names, every, splits, source)


def _row(row: list[str], place: str) -> tuple[str, str, int, int]:
    """Return the picture, its attribute, its label, and the number of the attribute's values."""
    if len(row) != 3 or not FLAGS.fullmatch(row[2]) or row[2].count("y") != 1:
        raise UserError(
            f"{place}: expected a picture, a task and flags of n, m and one y, found {row}"
        )
    name, task, flags = row
    return name, task.removesuffix(ENDING), flags.index("y"), len(flags)


def _values(attribute: str, count: int) -> tuple[str, ...]:
    """Return the names of an attribute's values, or numbers if the names are unknown."""
    names = tuple(VALUES.get(attribute, "").split("|"))
    return names if len(names) == count else tuple(map(str, range(count)))
