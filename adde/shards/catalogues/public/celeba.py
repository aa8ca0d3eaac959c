"""CelebA: forty attributes with the values "no" and "yes", in the data set's own splits.

The lists may lie in the given folder or one below (Anno/, Eval/), as the archives unpack.
"""

from array import array
from pathlib import Path

from adde.errors import UserError
from adde.files import open_text
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.public.lists import (
    catalogue_of_lists,
    find_images,
    find_list,
    look_up,
    read_rows,
)
from adde.shards.catalogues.tables.table import Cells, RowPlaces, Table
from adde.shards.catalogues.tables.tabular import TableOptions

SPLITS = {"0": "train", "1": "val", "2": "test"}
FLAGS = {"1": "yes", "-1": "no"}
IDENTITIES = "identity_CelebA.txt"


def celeba(root: Path, images: Path | None, options: TableOptions, size: int) -> Catalogue:
    """Read CelebA. If identity_CelebA.txt exists, --group-by identity keeps people in one split.

    An attribute that all training items or none have is left out with a notice.

    Raises:
        UserError: A file is missing, or a line does not follow the dataset's documentation.
    """
    path, partition = find_list(root, "list_attr_celeba.txt"), "list_eval_partition.txt"
    splits = dict(row for _, row in read_rows(find_list(root, partition), 2, header=False))
    with open_text(path) as file:
        file.readline()
        names = file.readline().split()
    if taken := {"image", "split", "identity"} & set(names):
        raise UserError(f"{path}, line 2: expected names of attributes, found {sorted(taken)[0]!r}")
    columns = {name: Cells() for name in ("image", "split", *names)}
    identities: dict[str, str] = {}
    if options.group_by == "identity":
        columns["identity"] = Cells()
        found = read_rows(find_list(root, IDENTITIES), 2, header=False)
        identities = dict(row for _, row in found)
    lines = array("q")
    for line, (image, *flags) in read_rows(path, len(names) + 1):
        place = f"{path}, line {line}"
        columns["image"].append(image)
        split = look_up(splits, image, place, partition)
        columns["split"].append(look_up(SPLITS, split, place, partition))
        for name, flag in zip(names, flags):
            columns[name].append(look_up(FLAGS, flag, place, name))
        if "identity" in columns:
            columns["identity"].append(identities.get(image, ""))
        lines.append(line)
    cells = {name: column.cells for name, column in columns.items()}
    table = Table(path, cells, RowPlaces(path, "line", lines))
    images = images or find_images(root, "img_align_celeba", table)
    return catalogue_of_lists("celeba", table, images, options, size)
