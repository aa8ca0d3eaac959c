"""Catalogues from a table and a folder of pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adde.errors import UserError
from adde.shards.catalogues.catalogue import Catalogue, PictureSource
from adde.shards.catalogues.pictures import choose_image_column, picture_files
from adde.shards.catalogues.tables.columns import label_attributes
from adde.shards.catalogues.tables.splits import (
    find_split_column,
    find_split_columns,
    named_as_split,
    require_items,
    splits_by_hash,
    splits_of_column,
    with_splits,
)
from adde.shards.catalogues.tables.table import Table, read_table
from adde.shards.catalogues.tables.unknown import WORDS, blank_unknown


@dataclass(frozen=True)
class TableOptions:
    """Meaning of a table's columns, and the assignment of items to splits."""

    image_column: str | None = None
    """Column with the names of picture files; found if not given."""
    id_column: str | None = None
    """Column with the item ids; the picture's name as written in the table if not given."""
    item_column: str | None = None
    """Column that names the item of each picture, where items have several pictures. An item stays
    in one split, and a gallery answers it once. The id column then names the pictures."""
    split_column: str | None = None
    """Column with train, val and test (query and gallery count as test); found if most of its cells
    are such words. Without one, a hash of an item's id decides its split."""
    group_by: str | None = None
    """Column whose values must not be in two splits, such as a photographer or a product family."""
    attributes: tuple[str, ...] = ()
    """Columns to learn. If not given: all other columns with few values, except ids, prices, dates
    and file names."""
    unknown: tuple[str, ...] = WORDS
    """Words, in any case, that mean an unknown value, as an empty cell does. COLUMN=WORD adds a
    word for one column."""
    min_count: int = 5
    """Training items that a value needs. Rarer values are merged into the value "other", or become
    unknown if even together they have too few."""
    multiple: tuple[str, ...] = ()
    """Attributes of which an item may have several values at once, such as the colours of a striped
    shirt. A cell holds a JSON list of texts, or texts separated by `separator`."""
    separator: str = ";"
    """Separates the values of a cell of a `multiple` attribute."""
    max_values: int = 100
    """Most distinct values of a column that becomes an attribute by itself."""
    val_share: float = 0.1
    """Share of items in the validation split. 0 allows an empty one; such shards cannot be trained
    on."""
    test_share: float = 0.1
    """Share of items in the test split. 0 allows an empty one; evaluation and export then need
    --split val, or --shards with a test split."""
    hold_out: tuple[str, ...] = ()
    """Two or more factors of a catalogue of exact factors. The test split then consists of a share
    of the combinations of their values, which no item of train or val shows."""

    def __post_init__(self) -> None:
        shares = (self.val_share, self.test_share)
        if min(shares) < 0 or sum(shares) >= 1:
            raise UserError(
                "--val-share, --test-share: expected shares from 0 whose sum is below 1, "
                f"found {self.val_share} and {self.test_share}"
            )
        if not self.separator:
            raise UserError("--separator: expected one or more characters, found none")


def read_catalogue(
    path: Path, images: Path, options: TableOptions, size: int, skip_unreadable: bool = False
) -> Catalogue:
    """Read a CSV or Parquet table as a catalogue; see `table_catalogue`.

    Args:
        path: The table.
        images: The folder that the names of pictures start from.
        options: The columns.
        size: Cap on a picture's short side, pixels.
        skip_unreadable: Leave out rows that cannot be read, or lack a unique id or a split.

    Raises:
        UserError: The table cannot be read, or see `table_catalogue`.
    """
    if not images.is_dir():
        raise UserError(f"--images: expected a folder of pictures, found none at {images}")
    table = read_table(path, skip_unreadable)
    if not len(table):
        raise UserError(f"{path}: expected at least one item, found a header only")
    image_column = choose_image_column(table, images, options.image_column)
    id_column = options.id_column or image_column
    table = table.with_ids(id_column, skip_unreadable)
    split_column = _split_column(table, options)
    if split_column is not None:
        table = with_splits(table, split_column, skip_unreadable)
    options = replace(
        options, image_column=image_column, id_column=id_column, split_column=split_column
    )
    files = picture_files(images, table.column(image_column), table.places, size)
    return table_catalogue(table, files, options)


def table_catalogue(
    table: Table, source: Callable[[int], PictureSource], options: TableOptions
) -> Catalogue:
    """Return the catalogue of a table and the pictures of its rows.

    Args:
        table: N rows.
        source: Maps a row number to its picture.
        options: The columns; the image column or the id column must be set.

    Raises:
        UserError: A column is missing, an item id appears twice, a split is unknown or empty, or
            no attribute is left.
    """
    image_column = options.image_column
    id_column = options.id_column or image_column
    if id_column is None:
        raise UserError(f"{table.path}: expected a column of item ids; name it with --id-column")
    item_ids = tuple(table.with_ids(id_column).column(id_column))
    items = None
    if options.item_column is not None:
        # A picture without an item is an item of its own.
        named = table.column(options.item_column)
        items = tuple(item or item_id for item, item_id in zip(named, item_ids))
    kept = {image_column, id_column, options.item_column}
    table, unknown_notices = blank_unknown(table, options.unknown, kept)
    split_column = _split_column(table, options)
    splits = _splits(table, items or item_ids, split_column, options)
    others = {*find_split_columns(table), *named_as_split(table)} - {split_column}
    schema, labels, label_notices = label_attributes(
        table,
        train=[split == "train" for split in splits],
        taken={
            *(image_column, id_column, options.item_column),
            *(split_column, options.group_by, *others),
        },
        asked=options.attributes,
        max_values=options.max_values,
        min_count=options.min_count,
        multiple=options.multiple,
        separator=options.separator,
    )
    return Catalogue(
        name=table.path.stem,
        schema=schema,
        item_ids=item_ids,
        labels=labels,
        splits=splits,
        source=source,
        items=items,
        notices=(
            *table.notices,
            *([] if items is None else [f"{len(item_ids)} pictures of {len(set(items))} items"]),
            (f"pictures are named by column {image_column!r}, " if image_column else "")
            + f"items by column {options.item_column or id_column!r}",
            *_split_notices(split_column, options.group_by, splits),
            *(
                f"column {name!r} looks like splits too; it is neither used nor learnt"
                for name in sorted(others - set(options.attributes))
            ),
            *unknown_notices,
            *label_notices,
        ),
    )


def _split_column(table: Table, options: TableOptions) -> str | None:
    if options.split_column and options.group_by:
        raise UserError(
            "--split-column, --group-by: expected only one of them, as each decides the splits"
        )
    if options.split_column or options.group_by:
        return options.split_column
    return find_split_column(table, options.attributes)


def _splits(
    table: Table, item_ids: Sequence[str], split_column: str | None, options: TableOptions
) -> tuple[str, ...]:
    if split_column:
        splits = splits_of_column(table, split_column)
        source = f"{table.path}, column {split_column!r}"
    else:
        groups = table.column(options.group_by) if options.group_by else item_ids
        # An item without a group forms its own group.
        keys = [group or item_id for group, item_id in zip(groups, item_ids)]
        splits = splits_by_hash(keys, options.val_share, options.test_share)
        source = f"{table.path}, {len(set(keys))} hashed keys"
    require_items(splits, options.val_share, options.test_share, source)
    return splits


def _split_notices(
    split_column: str | None, group_by: str | None, splits: Sequence[str]
) -> list[str]:
    by = f"a hash of {repr(group_by) if group_by else 'the item id'}"
    notices = [
        f"splits are those of column {split_column!r}"
        if split_column
        else f"splits are drawn by {by}"
    ]
    if "val" not in splits:
        notices.append("there is no split val; these shards cannot be trained on")
    if "test" not in splits:
        notices.append(
            "there is no split test: evaluation and export will need --split val, or --shards of "
            "a catalogue that has one"
        )
    return notices
