"""The catalogue that a table and a folder of pictures make."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adde.errors import UserError
from adde.shards.catalogues.catalogue import Items, Source
from adde.shards.catalogues.columns import label_attributes
from adde.shards.catalogues.pictures import PictureFiles, choose_image_column
from adde.shards.catalogues.splits import (
    find_split_column,
    find_split_columns,
    named_as_split,
    require_items,
    splits_by_hash,
    splits_of_column,
    with_splits,
)
from adde.shards.catalogues.table import Table, read_table
from adde.shards.catalogues.unknown import WORDS, blank_unknown


@dataclass(frozen=True)
class TableOptions:
    """Which columns of a table mean what, and which items go where."""

    image_column: str | None = None
    """Column that names the picture files; found if not given."""
    id_column: str | None = None
    """Column of the item ids; the picture's name as the table has it if not given."""
    split_column: str | None = None
    """Column of train, val and test (or query and gallery, which are test); found if most of its
    cells are such. Without one, items are drawn into splits by a hash of their id."""
    group_by: str | None = None
    """Column whose values never straddle splits, such as a photographer or a product family."""
    attributes: tuple[str, ...] = ()
    """Columns to learn; every other column of few values if not given, but ids, prices, dates and
    names of files."""
    unknown: tuple[str, ...] = WORDS
    """Words, in any case, that say like an empty cell that a value is not known; COLUMN=WORD says
    it of one column alone, beside the words of all."""
    min_count: int = 5
    """Training items a value must have; those with fewer are folded into the value "other", or
    are unknown where even together they have fewer."""
    max_values: int = 100
    """Distinct values up to which a column is found to be an attribute."""
    val_share: float = 0.1
    """Share of items drawn into the validation split; 0 allows for none, and then there is no
    training on these shards."""
    test_share: float = 0.1
    """Share of items drawn into the test split; 0 allows for none, and then neither evaluation
    nor export without --split val or shards that have one (--shards)."""
    hold_out: tuple[str, ...] = ()
    """Two or more factors of a catalogue of exact factors: the share of the test split is of the
    combinations of their values, which no item of train or val shows."""

    def __post_init__(self) -> None:
        shares = (self.val_share, self.test_share)
        if min(shares) < 0 or sum(shares) >= 1:
            raise UserError(
                "--val-share, --test-share: expected shares from 0 whose sum is below 1, "
                f"found {self.val_share} and {self.test_share}"
            )


def read_catalogue(
    path: Path, images: Path, options: TableOptions, size: int, skip_unreadable: bool = False
) -> Items:
    """Reads a CSV or Parquet table as a catalogue; see `table_catalogue`.

    Args:
        path: the table.
        images: folder that the names of pictures start from.
        options: the columns.
        size: cap on a picture's short side, pixels.
        skip_unreadable: leave out rows that cannot be read, have no id of their own, or no split.

    Raises:
        UserError: the table cannot be read, or as of `table_catalogue`.
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
    files = PictureFiles(images, table.column(image_column), table.places, size)
    return table_catalogue(table, files, options)


def table_catalogue(
    table: Table, pictures: Callable[[int], Source], options: TableOptions
) -> Items:
    """The catalogue of a table and the pictures of its rows.

    Args:
        table: N rows.
        pictures: of row numbers.
        options: the columns; an image column is there.

    Raises:
        UserError: a column is missing, an item id appears twice, a split is unknown or empty, or
            no attribute is left.
    """
    image_column = options.image_column
    id_column = options.id_column or image_column
    if id_column is None:
        raise UserError(f"{table.path}: expected a column of item ids; name it with --id-column")
    item_ids = tuple(table.with_ids(id_column).column(id_column))
    table, unknown_notices = blank_unknown(table, options.unknown, {image_column, id_column})
    split_column = _split_column(table, options)
    splits = _splits(table, item_ids, split_column, options)
    others = {*find_split_columns(table), *named_as_split(table)} - {split_column}
    schema, labels, label_notices = label_attributes(
        table,
        train=[split == "train" for split in splits],
        taken={image_column, id_column, split_column, options.group_by, *others},
        asked=options.attributes,
        max_values=options.max_values,
        min_count=options.min_count,
    )
    return Items(
        name=table.path.stem,
        schema=schema,
        item_ids=item_ids,
        labels=labels,
        splits=splits,
        pictures=pictures,
        notices=(
            *table.notices,
            (f"pictures are named by column {image_column!r}, " if image_column else "")
            + f"items by column {id_column!r}",
            *_tell_splits(split_column, options.group_by, splits),
            *(
                f"column {name!r} looks like splits too, and is neither used nor learnt"
                for name in sorted(others - set(options.attributes))
            ),
            *unknown_notices,
            *label_notices,
        ),
    )


def _split_column(table: Table, options: TableOptions) -> str | None:
    if options.split_column and options.group_by:
        raise UserError(
            "--split-column, --group-by: expected one of the two, as both say where items go"
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
        # An item without a group is a group of its own.
        keys = [group or item_id for group, item_id in zip(groups, item_ids)]
        splits = splits_by_hash(keys, options.val_share, options.test_share)
        source = f"{table.path}, {len(set(keys))} hashed keys"
    require_items(splits, options.val_share, options.test_share, source)
    return splits


def _tell_splits(
    split_column: str | None, group_by: str | None, splits: Sequence[str]
) -> list[str]:
    by = f"a hash of {repr(group_by) if group_by else 'the item id'}"
    told = [
        f"splits are those of column {split_column!r}"
        if split_column
        else f"splits are drawn by {by}"
    ]
    if "val" not in splits:
        told.append("there is no split val, without which there is no training on these shards")
    if "test" not in splits:
        told.append(
            "there is no split test: evaluation and export will need --split val, or --shards of "
            "a catalogue that has one"
        )
    return told
