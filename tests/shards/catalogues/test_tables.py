"""Real-world tables: the output of spreadsheets, shop systems and data frames."""

import csv
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adde.errors import UserError
from adde.shards.catalogues.pictures import find_picture
from adde.shards.catalogues.tables.table import read_table
from adde.shards.catalogues.tables.tabular import TableOptions, read_catalogue


def read(table, images, skip=False, **options):
    return read_catalogue(table, images, TableOptions(**options), 64, skip)


def told(catalogue, *parts):
    return any(all(part in notice for part in parts) for notice in catalogue.notices)


@pytest.fixture
def cells(tmp_path):
    """Return the columns of a file with the given content."""

    def make(content, name="t.csv", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return {name: list(column) for name, column in read_table(path, **options).columns.items()}

    return make


PLAIN = {"sku": ["a", "b"], "note": ["x, y", "z"]}
SHAPES = {
    "utf-16 as Excel's Unicode text": 'sku\tnote\r\na\t"x, y"\r\nb\tz\r\n'.encode("utf-16"),
    "utf-16, big end first": b"\xfe\xff" + "sku;note\na;x, y\nb;z\n".encode("utf-16-be"),
    "a byte order mark": b'\xef\xbb\xbfsku,note\r\na,"x, y"\r\nb,z',
    "sep= of Excel": "sep=;\r\nsku;note\r\na;x, y\r\nb;z\r\n",
    "quoted sep=": '"sep=;"\nsku;note\na;x, y\nb;z\n',
    "the edge of a sheet": 'sku,note,,\na,"x, y",,\nb,z,,\n,,,\n',
    "more empty cells than the header": 'sku,note\na,"x, y",,,\nb,z,\n',
    "spaces, some that do not break": ' sku ,\u00a0note\n a , "x, y" \nb\u00a0,z\u200b\n',
    "lines that end in CR": "sku;note\ra;x, y\rb;z\r",
    "blank lines above and below": '\n\nsku,note\na,"x, y"\n\nb,z\n\n  \n',
    "formulas against Excel": '"sku","note"\n="a","=""x, y"""\n="b","z"\n',
    "more commas than semicolons in the header": '"sku";"note"\n"a";"x, y"\n"b";"z"\n',
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_that_programs_write_are_read(cells, shape):
    assert cells(SHAPES[shape]) == PLAIN


def test_the_separator_is_the_one_that_fits_the_rows(cells):
    text = '"name, in full; short";"price, net"\n"a; b";"1,5"\n"c, d";"2,5"\n'
    assert cells(text) == {"name, in full; short": ["a; b", "c, d"], "price, net": ["1,5", "2,5"]}
    assert cells("tags;net\na,b;1,5\nc,d,e;2,5\n")["net"] == ["1,5", "2,5"]


def test_html_keeps_its_signs(cells):
    assert cells('sku,html\na,"<a href=""x"">y</a>"\n')["html"] == ['<a href="x">y</a>']


def test_cells_of_any_length(cells):
    page = "<p>long</p>" * 40_000
    assert cells(f'sku,html\na,"{page}"\nb,\n') == {"sku": ["a", "b"], "html": [page, ""]}


ODD_ROWS = (
    "sku,note\n"
    "a,1\n"
    "b,1,2\n"  # line 3
    "c\n"  # 4
    '"d,"e",1\n'  # 5: a quote within
    "f,2\n"
    '"g\nh",3\n'  # 7 and 8: fine
    '"i\nj",3,4\n'  # 9 and 10
    "k,4\n"
    '"l,5\n'  # 12: never closed
    "m,6\n"
)


def test_all_rows_that_cannot_be_read_are_named_or_left_out(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(ODD_ROWS)
    with pytest.raises(UserError) as error:
        read_table(path)
    message = str(error.value)
    assert message.startswith("5 rows cannot be used:")
    for place in ("line 3:", "line 4:", "line 5:", "lines 9 to 10:", "line 12:"):
        assert f"{path}, {place}" in message
    assert "leave them out with --skip-unreadable" in message
    table = read_table(path, skip_unreadable=True)
    assert table.column("sku") == ("a", "f", "g\nh", "k", "m")
    assert [table.places[row] for row in (2, 4)] == [f"{path}, line 7", f"{path}, line 13"]
    assert "5 rows of" in table.notices[0]
    assert "lines 9 to 10" in table.notices[0]


def test_of_many_rows_the_first_twenty_are_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" + "1,2,3\n" * 31)
    with pytest.raises(UserError, match=r"31 rows cannot be used") as error:
        read_table(path)
    assert "line 22:" in str(error.value)
    assert "line 23:" not in str(error.value)
    assert "and 11 more" in str(error.value)


def test_missing_and_repeated_ids(shop, rows):
    rows = [{**row, "sku": f"s{number}"} for number, row in enumerate(rows)]
    rows[3]["sku"], rows[5]["sku"], rows[9]["sku"] = "", "s1", "s1"
    table, images = shop(rows)
    with pytest.raises(UserError, match=r"(?s)3 rows.*line 5:.*line 7:.*line 11:.*line 3"):
        read(table, images, id_column="sku")
    found = read(table, images, skip=True, id_column="sku")
    assert len(found.item_ids) == 57
    row = found.item_ids.index("s6")
    assert found.source(row).read()[0] == (images / "06.jpg").read_bytes()
    assert told(found, "3 rows of", "line 5", "line 7", "line 11")


def test_concatenated_tables(cells):
    with pytest.raises(UserError, match=r"line 3: expected a row, found the header once more"):
        cells("sku,note\na,x\nsku,note\nb,y\n")
    assert cells("sku,note\na,x\nsku,note\nb,y\n", skip_unreadable=True)["sku"] == ["a", "b"]


def test_utf_16_without_a_mark_is_reported(cells):
    with pytest.raises(UserError, match="UTF-16 without its mark; save it as UTF-8"):
        cells("sku,note\na,x\n".encode("utf-16-le"))


def test_names_of_columns_that_repeat_are_all_named(cells):
    with pytest.raises(UserError, match=r"'a' twice \(columns 1, 3\); 'b' 3 times \(columns 2, 4"):
        cells("a,b,a,b,b\n1,2,3,4,5\n")


# Splits


def with_column(rows, name, words):
    return [{**row, name: words[i % len(words)]} for i, row in enumerate(rows)]


def test_a_blank_among_splits_is_rejected_or_left_out(shop, rows):
    rows = with_column(rows, "part", ["train", "train", "Test set", "validation", "TRAIN"])
    rows[7]["part"], rows[30]["part"] = "", "trian"
    table, images = shop(rows)
    with pytest.raises(UserError, match=r"(?s)line 9: .*'none'.*line 32: .*found 'trian'"):
        read(table, images)
    found = read(table, images, skip=True)
    assert len(found.item_ids) == 58
    assert found.splits[:5] == ("train", "train", "test", "val", "train")
    assert "part" not in found.schema.names


def test_query_and_gallery_are_the_test(shop, rows):
    table, images = shop(with_column(rows, "status", ["train", "val", "query", "gallery"]))
    found = read(table, images, min_count=1)
    assert found.splits[:4] == ("train", "val", "test", "test")
    assert "status" not in found.schema.names


@pytest.mark.parametrize("name", ["split", "Partition", "evaluation_status", "isTrain", "test_set"])
def test_a_column_named_like_splits_is_not_learnt(shop, rows, name):
    table, images = shop(with_column(rows, name, ["0", "1", "2"]))
    with pytest.raises(UserError, match=rf"column '{name}' looks like splits.*--split-column"):
        read(table, images)
    assert name in read(table, images, attributes=("colour", name)).schema.names


def test_two_columns_of_splits(shop, rows):
    both = with_column(with_column(rows, "a", ["train", "val", "test"]), "b", ["test", "train"])
    table, images = shop(both)
    with pytest.raises(UserError, match=r"one column of splits, found \['a', 'b'\]"):
        read(table, images)
    found = read(table, images, split_column="a", min_count=1)
    assert not {"a", "b"} & set(found.schema.names)
    assert told(found, "column 'b' looks like splits too")


def test_a_word_of_splits_among_others_is_a_trait(shop, rows):
    table, images = shop(with_column(rows, "toy", ["train", "car", "doll"]))
    assert "toy" in read(table, images).schema.names


def test_a_catalogue_without_a_test_split_says_so(shop, rows):
    table, images = shop(rows)
    assert told(read(table, images, test_share=0), "no split test", "--split val", "--shards")
    assert told(read(table, images, val_share=0), "no split val")
    assert not told(read(table, images), "no split")


# Columns that are not traits


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("amount", ["9.99", "19.99", "N/A", "29.90"], "numbers with a fraction"),
        ("amount", ["9,99 €", "19,99 €", "auf Anfrage"], "numbers with a fraction"),
        ("price", ["10", "20"], "prices, as its name"),
        ("swatch", ["red.PNG", "blue.png", ""], "names of pictures"),
        ("brand_logo", ["https://cdn/a", "https://cdn/b"], "links"),
        ("added", ["2023-01-05", "2023-02-06 10:00", "unknown"], "dates"),
        ("categoryID", ["12", "13"], "ids, as its name"),
    ],
)
def test_columns_that_are_not_traits_are_left_out_unless_asked_for(shop, rows, name, values, why):
    table, images = shop(with_column(rows, name, values))
    found = read(table, images)
    assert name not in found.schema.names
    assert told(found, f"column {name!r} is no attribute", why, "--attributes")
    assert name in read(table, images, attributes=("colour", name)).schema.names


def test_numeric_codes_are_learnt_and_reported(shop, rows):
    table, images = shop(with_column(rows, "waist", ["1.0", "2.0", "3.0", ""]))
    found = read(table, images)
    assert "waist" in found.schema.names
    assert told(found, "'waist'", "values are numbers")


# Unknown


def test_the_same_labels_of_a_csv_and_a_parquet(shop, rows):
    for number, row in enumerate(rows):
        row["pattern"] = (None, "dots", "plain")[number % 3]
    table, images = shop([{**row, "pattern": row["pattern"] or "NaN"} for row in rows])
    columns = {name: [row[name] or None for row in rows] for name in rows[0]}
    pq.write_table(pa.table(columns), table.with_suffix(".parquet"))
    ours, theirs = read(table, images), read(table.with_suffix(".parquet"), images)
    assert ours.schema.hash == theirs.schema.hash
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert told(ours, "column 'pattern'", "'NaN' (20 rows)")


def test_words_for_unknown(shop, rows):
    rows = with_column(rows, "pattern", ["None", "dots", "k=1", "n/a", "?"])
    table, images = shop(rows)

    def values(*words):
        found = read(table, images, min_count=1, **({"unknown": words} if words else {}))
        return set(found.schema.attributes[found.schema.names.index("pattern")].values), found

    assert values()[0] == {"None", "dots", "k=1", "?"}
    assert told(values()[1], "'None' (12 rows), '?' (12 rows)", "--unknown 'pattern=None'")
    # A word for one column keeps the words for all.
    assert values("pattern=none", "pattern=k=1")[0] == {"dots", "?"}
    assert values("?", "pattern=k=1")[0] == {"None", "dots", "n/a"}
    with pytest.raises(UserError, match=r"no column 'patern'; did you mean 'pattern'"):
        values("patern=none")
    # Ids are never unknown.
    ids = with_column(rows, "pattern", ["dots", "plain"])
    ids[0]["image"] = "null.jpg"
    ids = [{**row, "sku": "NULL" if not i else f"s{i}"} for i, row in enumerate(ids)]
    assert read(*shop(ids), id_column="sku").item_ids[0] == "NULL"


def test_single_precision_is_written_as_a_csv_has_it(tmp_path):
    columns = {"w": pa.array([0.1, None, 2.5], pa.float32()), "h": pa.array([0.1, 3.0, 1e-7])}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    cells = read_table(tmp_path / "t.parquet").columns
    assert cells["w"] == ("0.1", "", "2.5")
    assert cells["h"] == ("0.1", "3.0", "1e-07")


# Folders


def test_a_folder_of_parquet_parts(tmp_path):
    root = tmp_path / "items.parquet"
    for folder, count in (("colour=dark%20red", [1, 2]), ("colour=blue", [3.0, None])):
        (root / folder).mkdir(parents=True)
        part = pa.table({"sku": [f"{folder[7]}{n}" for n in range(2)], "count": count})
        pq.write_table(part, root / folder / "part-0.snappy.parquet")
    (root / "colour=__HIVE_DEFAULT_PARTITION__").mkdir()
    last = pa.table({"sku": ["n"], "extra": ["e"]})
    pq.write_table(last, root / "colour=__HIVE_DEFAULT_PARTITION__" / "part-0.parquet")
    for note in ("_SUCCESS", ".part-0.crc", "README", "_metadata"):
        (root / note).write_text("no table")
    assert dict(read_table(root).columns) == {
        "sku": ("n", "b0", "b1", "d0", "d1"),
        "extra": ("e", "", "", "", ""),
        "colour": ("", "blue", "blue", "dark red", "dark red"),
        "count": ("", "3.0", "", "1.0", "2.0"),
    }
    (root / "colour=blue" / "part-0.snappy.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"colour=blue/part-0.snappy.parquet: expected a Parquet"):
        read_table(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"found a folder without any \.parquet"):
        read_table(tmp_path / "empty")


# Names of files


def test_names_that_look_the_same_are_equal(shop, rows, tmp_path):
    table, images = shop(rows)
    (images / "Mäntel").mkdir()
    decomposed = unicodedata.normalize("NFD", "Mäntel")
    (images / "Mäntel").rename(images / decomposed)
    for number, row in enumerate(rows):
        name = f"{decomposed}/Größe\u00a0{row['image']}"
        (images / row["image"]).rename(images / unicodedata.normalize("NFD", name))
        form = ("NFC", "NFD")[number % 2]
        row["image"] = unicodedata.normalize(form, f"Mäntel/Größe {row['image']}")
        row["colour"] = unicodedata.normalize(form, "grün") if number % 3 else "rot"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    found = read(table, images)
    assert all(found.source(row).read() for row in range(60))
    colour = found.schema.attributes[found.schema.names.index("colour")]
    assert colour.values == ("grün", "rot")


@pytest.mark.parametrize(
    ("there", "cell"),
    [
        ("a.JPEG", "a"),
        ("a.PNG", "a"),
        ("a.WEBP", "a"),
        ("a.JPG", "a.jpg"),
        ("a.png", "a.PNG"),
        ("b/c/a.jpg", "b\\c\\a.jpg"),
        ("b/c/a.jpg", "./b//c/a"),
        ("B/ä.jpg", "B/a\u0308"),
        ("e\u0301/ä.JPG", "é\\a\u0308.JPG"),
    ],
)
def test_files_that_a_cell_names(tmp_path, there, cell):
    path = tmp_path / there
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert find_picture(tmp_path, cell) == path


@pytest.mark.parametrize("cell", ["../x/a.jpg", "..\\x\\a.jpg", "", ".", "a\0.jpg", "n" * 5000])
def test_cells_that_name_no_file(tmp_path, cell):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jpg").touch()
    (tmp_path / "images").mkdir()
    assert find_picture(tmp_path / "images", cell) is None


STRIPED = "sku,colour,kind\n" + "".join(
    f"p{n}.png,{colour},{('sock', 'shirt')[n % 2]}\n"
    for n, colour in enumerate(
        ['"red;white"', "red", " white ; red ", '"[""white"", ""red""]"', ""]
    )
)


def colours_of(catalogue):
    decoded = map(catalogue.schema.decode, catalogue.labels)
    return [labels["colour"] for labels in decoded]


def test_cells_with_several_values(tmp_path):
    (tmp_path / "t.csv").write_text(STRIPED)
    options = {"image_column": "sku", "min_count": 1, "val_share": 0, "test_share": 0}
    found = read(tmp_path / "t.csv", tmp_path, multiple=("colour",), **options)
    assert [a.multiple for a in found.schema.attributes] == [True, False]
    assert found.schema.attributes[0].values == ("red", "white")
    both = ["red", "white"]
    assert colours_of(found) == [both, ["red"], both, both, None]
    other = read(tmp_path / "t.csv", tmp_path, multiple=("colour",), separator="|", **options)
    assert "red;white" in other.schema.attributes[0].values
    # Parquet's lists are the same.
    cells = [["red", "white"], ["red"], ["white", "red"], ["red", "white"], None]
    names, kinds = [f"p{n}.png" for n in range(5)], ["sock", "shirt", "sock", "shirt", "sock"]
    table = pa.table({"sku": names, "colour": cells, "kind": kinds})
    pq.write_table(table, tmp_path / "t.parquet")
    lists = read(tmp_path / "t.parquet", tmp_path, multiple=("colour",), **options)
    assert (lists.schema, lists.labels.tolist()) == (found.schema, found.labels.tolist())
    unmarked = read(tmp_path / "t.parquet", tmp_path, **options)
    assert unmarked.schema.names == ("kind",)
    assert told(unmarked, "'colour'", "has lists of values", "--multiple colour")


def test_a_set_where_the_schema_has_one_value(tmp_path):
    (tmp_path / "t.csv").write_text(STRIPED)
    options = {"image_column": "sku", "min_count": 1, "val_share": 0, "test_share": 0}
    with pytest.raises(UserError, match=r"t.csv, line 5: attribute 'colour': .* --multiple colour"):
        read(tmp_path / "t.csv", tmp_path, attributes=("colour", "kind"), **options)
    with pytest.raises(UserError, match="expected attributes among --attributes kind, found 'col"):
        read(tmp_path / "t.csv", tmp_path, attributes=("kind",), multiple=("colour",), **options)
    (tmp_path / "t.csv").write_text(STRIPED.replace('[""white"", ""red""]', "[white, 3]"))
    with pytest.raises(UserError, match=r"line 5: attribute 'colour': .* found \[white, 3\]"):
        read(tmp_path / "t.csv", tmp_path, multiple=("colour",), **options)
    rows = [f"p{n}.png,c{n};c{n + 1},{n % 2}\n" for n in range(70)]
    (tmp_path / "t.csv").write_text("sku,colour,kind\n" + "".join(rows))
    with pytest.raises(UserError, match="--multiple colour: expected at most 62 values, found 71"):
        read(tmp_path / "t.csv", tmp_path, multiple=("colour",), **options)


def test_rare_values_leave_a_set_and_common_ones_stay(tmp_path):
    rows = ["red;mauve", "red;white", "red", "white", "white"]
    text = "".join(f"p{n}.png,{colour},{n % 2}\n" for n, colour in enumerate(rows))
    (tmp_path / "t.csv").write_text("sku,colour,kind\n" + text)
    options = {"image_column": "sku", "min_count": 2, "val_share": 0, "test_share": 0}
    found = read(tmp_path / "t.csv", tmp_path, multiple=("colour",), **options)
    assert colours_of(found) == [["red"], ["red", "white"], ["red"], ["white"], ["white"]]
    assert told(found, "'colour'", "1 values with fewer than 2", "are unknown (1 items): mauve")


def test_pictures_of_one_item_stay_in_one_split(tmp_path):
    rows = [f"p{n}.png,shirt {n // 3},{('red', 'blue')[n % 2]},{n % 2}\n" for n in range(150)]
    rows.append("extra.png,,red,1\n")
    (tmp_path / "t.csv").write_text("file,product,colour,kind\n" + "".join(rows))
    options = {"image_column": "file", "item_column": "product", "min_count": 1}
    found = read(tmp_path / "t.csv", tmp_path, **options)
    assert found.schema.names == ("colour", "kind")
    assert found.items[:4] == ("shirt 0",) * 3 + ("shirt 1",) and found.items[-1] == "extra.png"
    assert found.item_ids[:2] == ("p0.png", "p1.png")
    splits = {}
    for item, split in zip(found.items, found.splits):
        assert splits.setdefault(item, split) == split
    assert set(splits.values()) == {"train", "val", "test"}
    assert told(found, "151 pictures of 51 items")
    with pytest.raises(UserError, match="no column 'produce'"):
        read(tmp_path / "t.csv", tmp_path, **{**options, "item_column": "produce"})
    text = "".join(f"{row[:-1]},{('train', 'test')[n % 2]}\n" for n, row in enumerate(rows))
    (tmp_path / "t.csv").write_text("file,product,colour,kind,split\n" + text)
    message = "item 'shirt 0': expected all its pictures in one split, found some in 'train' and"
    with pytest.raises(UserError, match=message):
        read(tmp_path / "t.csv", tmp_path, **options, val_share=0)
