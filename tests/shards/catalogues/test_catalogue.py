"""Tables as catalogues: columns, labels, splits, and messages about bad input."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adde.errors import UserError
from adde.schema import UNKNOWN, Attribute, Schema
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.tables.columns import fold
from adde.shards.catalogues.tables.splits import splits_by_hash
from adde.shards.catalogues.tables.table import read_table
from adde.shards.catalogues.tables.tabular import TableOptions, read_catalogue


def read(table, images, size=64, **options):
    return read_catalogue(table, images, TableOptions(**options), size)


def test_finds_columns_and_labels(shop, rows):
    catalogue = read(*shop(rows))
    assert catalogue.name == "items"
    assert catalogue.item_ids == tuple(row["image"] for row in rows)
    # `price` differs in every row; `family` has 12 values in 60 rows.
    assert catalogue.schema.names == ("sleeve", "colour", "family")
    assert catalogue.schema.attributes[1].values == ("blue", "green", "red")
    assert any("'price' is no attribute" in notice for notice in catalogue.notices)
    for row, labels in zip(rows, catalogue.labels):
        named = catalogue.schema.decode(labels)
        assert (named["sleeve"], named["colour"]) == (row["sleeve"] or None, row["colour"])


def test_columns_with_another_meaning_are_not_attributes(shop, rows):
    parts = ("train", "test", "valid", "train", "train")
    rows = [{**row, "part": parts[i % 5]} for i, row in enumerate(rows)]
    grouped = read(*shop(rows), group_by="family")
    assert grouped.schema.names == ("sleeve", "colour")
    assert any("'part' looks like splits too" in notice for notice in grouped.notices)
    found = read(*shop(rows), min_count=3)
    assert found.schema.names == ("sleeve", "colour", "family")
    assert found.splits[:3] == ("train", "test", "val")
    sku = [{**row, "sku": f"S{i}"} for i, row in enumerate(rows)]
    catalogue = read(*shop(sku), id_column="sku", attributes=("colour", "sleeve"))
    assert catalogue.item_ids[7] == "S7"
    assert catalogue.schema.names == ("sleeve", "colour")  # in the table's order


def test_cells_and_names_are_stripped(shop, rows):
    padded = [{f" {key} ": f"  {value} " for key, value in row.items()} for row in rows]
    table, images = shop(rows)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, padded[0].keys())
        writer.writeheader()
        writer.writerows(padded)
    assert read(table, images).schema.hash == read(*shop(rows)).schema.hash


@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b", "c", "d", "other"]), st.booleans())),
    st.integers(0, 5),
)
def test_fold_as_defined(pairs, min_count):
    cells, train = [cell for cell, _ in pairs], [seen for _, seen in pairs]
    folded = fold(cells, train, min_count)

    def seen(words):
        return sum(1 for cell, in_train in pairs if in_train and cell in words)

    words = {cell for cell in cells if cell}
    rare = {word for word in words if seen({word}) < min_count}
    folds = bool(rare) and seen(rare | {"other"}) >= min_count
    assert folded.values == tuple(sorted((words - rare) | ({"other"} if folds else set())))
    for cell in set(cells):
        label = folded.label(cell)
        kept = None if label == UNKNOWN else folded.values[label]
        assert kept == ((("other" if folds else None) if cell in rare else cell) or None)


def test_folding_is_reported(shop, rows):
    for number in range(4):
        rows[number]["colour"] = f"rare {number}"
    table, images = shop(rows)
    other = read(table, images, min_count=3, val_share=0, test_share=0)
    assert other.schema.attributes[1].values == ("blue", "green", "other", "red")
    notice = "attribute 'colour': 4 values with fewer than 3 training items are 'other' (4 items)"
    assert any(notice in line for line in other.notices)
    unknown = read(table, images, min_count=5, val_share=0, test_share=0)
    assert unknown.schema.attributes[1].values == ("blue", "green", "red")
    assert (unknown.labels[:4, 1] == UNKNOWN).all()
    assert any("are unknown (4 items)" in line for line in unknown.notices)


def test_hash_splits_never_change():
    # sha256("1") = 6b86b273ff34fce1..., "13": 3fdba35f..., "33": c6f3ac57...: 0.42, 0.25, 0.78
    assert splits_by_hash(["1", "13", "33"], 0.2, 0.25) == ("val", "test", "train")


def test_hash_splits_stay_as_the_catalogue_grows():
    keys = [str(number) for number in range(4000)]
    splits = splits_by_hash(keys, 0.1, 0.2)
    assert splits_by_hash(keys[1000:1500], 0.1, 0.2) == splits[1000:1500]
    shares = {split: count / len(keys) for split, count in Counter(splits).items()}
    assert shares == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.03)


def test_groups_do_not_straddle_splits(shop, rows):
    catalogue = read(*shop(rows), group_by="family", val_share=0.3, test_share=0.3)
    splits = {}
    for row, split in zip(rows, catalogue.splits):
        splits.setdefault(row["family"], set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    # An item without a family is assigned by its id.
    alone = [{**row, "family": "" if i else "f"} for i, row in enumerate(rows)]
    by_id = read(*shop(alone), val_share=0.3, test_share=0.3).splits[1:]
    assert read(*shop(alone), group_by="family", val_share=0.3, test_share=0.3).splits[1:] == by_id


def test_pictures_named_without_ending(shop, rows):
    table, images = shop(rows)
    bare = [{**row, "image": row["image"][:-4]} for row in rows]
    table.write_text(table.read_text().replace(".jpg", ""))
    catalogue = read(table, images)
    assert catalogue.item_ids == tuple(row["image"] for row in bare)
    assert catalogue.source(3).read()[0] == (images / "03.jpg").read_bytes()


def test_parquet_reads_as_csv(shop, rows, tmp_path):
    table, images = shop(rows)
    columns = {name: [row[name] or None for row in rows] for name in rows[0]}
    columns["sleeve"] = pa.array(columns["sleeve"]).dictionary_encode()
    columns["stock"] = pa.array([1, None] * 30)
    columns["weight"] = pa.array([0.5, float("nan")] * 30)
    columns["vector"] = pa.array([[1.0, 2.0]] * 60)
    columns["thumb"] = pa.array([b"\xff"] * 60)
    file = tmp_path / "items.parquet"
    pa.parquet.write_table(pa.table(columns), file)
    ours, theirs = read(table, images), read(file, images)
    assert ours.schema.hash == theirs.schema.hash
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert (ours.item_ids, ours.splits) == (theirs.item_ids, theirs.splits)
    cells = read_table(file).columns
    assert cells["stock"][:2] == ("1", "")
    assert cells["weight"][:2] == ("0.5", "")
    assert not {"vector", "thumb"} & set(cells)


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
def test_csv_of_other_separators_and_quotes(tmp_path, separator):
    path = tmp_path / "t.csv"
    lines = [["", "name", "note"], ["0", f'a "b"{separator}c', "two\nlines"], ["1", "ü", ""]]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=separator).writerows(lines)
    table = read_table(path)
    assert dict(table.columns) == {
        "column 1": ("0", "1"),
        "name": (f'a "b"{separator}c', "ü"),
        "note": ("two\nlines", ""),
    }
    assert table.places[1] == f"{path}, line 4"


CSV_ERRORS = {
    "a,b\n1,2\n1\n": "line 3: expected 2 cells as in the header, found 1",
    "a,b\n1,2\n3,4,5\n": "line 3: expected 2 cells as in the header, found 3",
    'a,b\n1,2\n3,"4\n': "line 3: expected CSV, found: unexpected end of data",
    "a,a\n1,2\n": "expected each column's name once, found 'a' twice",
    "": "line 1: expected a header",
}


@pytest.mark.parametrize(("text", "message"), CSV_ERRORS.items())
def test_csv_errors_name_the_line(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value)


def test_table_errors(tmp_path):
    latin = tmp_path / "latin.csv"
    latin.write_bytes(b"a,b\n1,2\nna\xefve,3\n")
    with pytest.raises(UserError, match=r"latin.csv, line 3: expected UTF-8, found byte 0xef"):
        read_table(latin)
    broken = tmp_path / "t.parquet"
    broken.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"t.parquet: expected a Parquet file"):
        read_table(broken)
    sheet = tmp_path / "t.xlsx"
    sheet.touch()
    with pytest.raises(UserError, match=r"t.xlsx: expected a table whose name ends in"):
        read_table(sheet)
    with pytest.raises(UserError, match=r"no.csv: expected a CSV or Parquet file, found none"):
        read_table(Path("no.csv"))


def change(rows, **cells):
    return [{**row, **cells} for row in rows]


def test_bad_columns_are_named(shop, rows):
    table, images = shop(rows)
    bad = {
        "no column 'color'; did you mean 'colour'": {"attributes": ("color",)},
        "no column 'famly'; did you mean 'family'": {"group_by": "famly"},
        "line 3: expected a unique item id in column 'colour', found 'red' as in": {
            "id_column": "colour"
        },
        "line 2: expected train, val or test in column 'colour', found 'red'": {
            "split_column": "colour"
        },
        "expected only one of them": {"split_column": "colour", "group_by": "family"},
        "expected shares from 0 whose sum is below 1, found 0.5 and 0.5": {
            "val_share": 0.5,
            "test_share": 0.5,
        },
        "hashed keys: expected items in split 'val', found none of 60": {"val_share": 1e-9},
    }
    for message, options in bad.items():
        with pytest.raises(UserError, match=message):
            read(table, images, **options)
    with pytest.raises(UserError, match=r"expected a folder of pictures, found none at .*nowhere"):
        read(table, images / "nowhere")


def test_empty_split_of_a_column(shop, rows):
    table, images = shop([{**row, "split": "train" if i else "test"} for i, row in enumerate(rows)])
    with pytest.raises(UserError, match=r"'split': expected items in split 'val'.*--val-share 0"):
        read(table, images)
    assert set(read(table, images, val_share=0).splits) == {"train", "test"}


def test_attribute_of_one_value(shop, rows):
    table, images = shop(change(rows, season="summer"))
    with pytest.raises(UserError, match=r"items.csv: attribute 'season' has only .*'summer'"):
        read(table, images, attributes=("colour", "season"))
    catalogue = read(table, images)
    assert "season" not in catalogue.schema.names
    assert any("'season' is no attribute" in notice for notice in catalogue.notices)


def test_no_attribute_at_all(shop, rows):
    table, images = shop([{"image": row["image"], "price": row["price"]} for row in rows])
    with pytest.raises(UserError, match=r"makes an attribute, found none:\s+column 'price'"):
        read(table, images)


def test_no_pictures(shop, rows):
    table, images = shop(rows)
    with pytest.raises(UserError, match=r"names picture files below .*empty.*\n  image: '00.jpg'"):
        (images.parent / "empty").mkdir()
        read(table, images.parent / "empty")
    # Names may not lead outside the folder.
    (images / "below").mkdir()
    table.write_text(table.read_text().replace("\n", "\n../", 60))
    with pytest.raises(UserError, match=r"found none among .*\n  image: '../00.jpg'"):
        read(table, images / "below")
    header_only = images.parent / "header.csv"
    header_only.write_text("image,colour\n")
    with pytest.raises(UserError, match="expected at least one item"):
        read(header_only, images)


def test_two_columns_of_pictures(shop, rows):
    table, images = shop([{**row, "back": row["image"]} for row in rows])
    with pytest.raises(UserError, match=r"found \['image', 'back'\]; name one with --image-column"):
        read(table, images)
    assert read(table, images, image_column="back").schema.names == ("sleeve", "colour", "family")


def test_missing_pictures(shop, rows):
    table, images = shop(rows)
    (images / "03.jpg").unlink()
    (images / "04.jpg").write_bytes(b"GIF")
    (images / "05.jpg").unlink()
    (images / "05.jpg").mkdir()
    catalogue = read(table, images)
    for row, message in {
        3: r"items.csv, line 5: expected a picture file below .*, found '03.jpg'",
        4: r"images/04.jpg: expected a picture that decodes",
        5: r"items.csv, line 7: expected a picture file",
    }.items():
        with pytest.raises(UserError, match=message):
            catalogue.source(row).read()


def test_stamp_changes_with_a_picture(shop, rows):
    table, images = shop(rows)

    def stamp(**options):
        return read(table, images, **options).source(59).stamp()

    before = stamp()
    assert stamp() == before
    assert stamp(size=32) != before
    (images / "59.jpg").write_bytes((images / "58.jpg").read_bytes())
    assert stamp() != before
    (images / "59.jpg").unlink()
    assert stamp() != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [[0]]}, r"expected labels \(2, 1\)"),
        ({"splits": ("train",)}, "as many splits, found .* and 1"),
        ({"labels": [[0], [2]]}, "item 'b': expected a label from -1 to 1 of 'colour', found 2"),
        ({"labels": [[-2], [0]]}, "item 'a'.*found -2"),
        ({"splits": ("train", "dev")}, r"found \['dev'\]"),
        ({"item_ids": ("a", "a")}, "every item id once"),
    ],
)
def test_a_catalogue_rejects_parts_that_do_not_fit(changes, message):
    parts = {"item_ids": ("a", "b"), "labels": [[0], [-1]], "splits": ("train", "test")}
    parts |= {"name": "bare", "schema": Schema((Attribute("colour", ("red", "blue")),))}

    def make(**parts):
        return Catalogue(**{**parts, "labels": np.array(parts["labels"])}, source=print)

    make(**parts)
    with pytest.raises(UserError, match=message):
        make(**{**parts, **changes})
