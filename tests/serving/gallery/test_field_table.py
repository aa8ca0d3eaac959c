"""Fields of a table, joined to items when a gallery is built."""

import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adde.errors import UserError
from adde.schema import Attribute, Schema
from adde.serving.gallery import embedding
from adde.serving.gallery.build import build_with
from adde.serving.gallery.embedding import embed_here, sample_ids
from adde.serving.gallery.facets import Facet
from adde.serving.gallery.field_table import FieldTable
from adde.serving.gallery.opening import open_gallery
from adde.shards.index import ShardIndex

SCHEMA = Schema((Attribute("colour", ("red", "green")),))
PROGRAM = Path(__file__).parents[3] / "serve_onnx" / "build_gallery.py"


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / "items.csv"
        path.write_text(text)
        return path

    return write


def test_cells_have_the_type_of_their_column(table):
    path = table(
        "sku,colour,size,price,sold,code,mixed,nothing,big\n"
        "a,red,36,9.5,true,007,1,,1e400\n"
        "b,green,-1,10,False,008,x,,2\n"
        "c,,,,,,,,\n"
    )
    fields = FieldTable(path, "sku", (), SCHEMA)
    assert fields.fields("a") == {
        **{"size": 36, "price": 9.5, "sold": True, "code": "007", "mixed": "1", "big": "1e400"}
    }
    assert fields.fields("b") == {
        **{"size": -1, "price": 10.0, "sold": False, "code": "008", "mixed": "x", "big": "2"}
    }
    assert isinstance(fields.fields("b")["price"], float)
    assert isinstance(fields.fields("b")["size"], int)
    assert fields.fields("c") == {}
    assert fields.unmatched == 0
    assert fields.fields("d") == {}
    assert fields.unmatched == 1
    assert FieldTable(path, "sku", ("size",), SCHEMA).fields("a") == {"size": 36}


def test_numbers_as_people_write_them(table):
    path = table(
        "sku;us;german;french;swiss;mixed;codes\n"
        "a;1,045.00;1.045,90;1 045,5;1'045;12,90;0,90\n"
        "b;12;12,90;7;-3,25;1,045.00;x\n"
        "c;N/A;-1.234.567;;null;;1\n"
    )
    comma = ("german", "french", "swiss")
    fields = FieldTable(path, "sku", (), SCHEMA, decimal_comma=comma)
    assert fields.fields("a") == {
        **{"us": 1045.0, "german": 1045.9, "french": 1045.5, "swiss": 1045.0},
        **{"mixed": "12,90", "codes": "0,90"},
    }
    assert fields.fields("b")["swiss"] == -3.25
    assert fields.fields("c") == {"german": -1234567.0, "codes": "1"}
    with pytest.raises(UserError, match="no column 'germn'; did you mean 'german'"):
        FieldTable(path, "sku", (), SCHEMA, decimal_comma=("germn",))


def test_each_kind_is_reported_with_the_cell_that_is_not_numeric(table):
    path = table(
        "sku,price,net,sold,brand,left,year\n"
        '1,9.50,"9,50",TRUE,acme,,2020\n'
        '2,on sale,"8,25",false,nord,,2021\n'
        '3,7,"7,5",,n/a,,2019\n'
    )
    told = FieldTable(path, "sku", (), SCHEMA).notices
    assert told[0] == "column 'brand': unknown, as --unknown says: 'n/a' (1 rows)"
    price, net, sold, brand, left, year = told[1:]
    assert price.startswith("field 'price': text, 3 of 3 rows: not numeric because 1 cells are not")
    assert f"'on sale' ({path}, line 3)" in price
    assert "--unknown" in price
    assert "'9,50'" in net
    assert "--decimal-comma net" in net
    assert sold == "field 'sold': true or false, 2 of 3 rows"
    assert brand == "field 'brand': text, 2 of 3 rows"
    assert left == "field 'left': nothing, 0 of 3 rows"
    assert year == "field 'year': whole numbers, 3 of 3 rows, 2019 to 2021"


def test_other_words_or_commas_are_another_source(table):
    path = table("sku,price\na,1\n")
    ways = ({}, {"unknown": ("-",)}, {"decimal_comma": ("price",)}, {"skip_unreadable": True})
    assert len({FieldTable(path, "sku", (), SCHEMA, **way).hash for way in ways}) == 4


def test_unusable_rows_are_named_or_skipped(table):
    path = table("sku,price\na,1\n,2\na,3\nb,4,5\nc,6\n")
    with pytest.raises(UserError, match=r"line 5: expected 2 cells"):
        FieldTable(path, "sku", (), SCHEMA)
    fields = FieldTable(path, "sku", (), SCHEMA, skip_unreadable=True)
    assert [fields.fields(item) for item in "abc"] == [{"price": 1}, {}, {"price": 6}]
    assert "line 3" in fields.notices[1]
    assert "line 4" in fields.notices[1]


def test_a_folder_of_parquet_is_a_table_of_fields(tmp_path):
    root = tmp_path / "fields"
    root.mkdir()
    for name, prices in (("a", [1, 2]), ("b", [2.5, None])):
        part = pa.table({"sku": [f"{name}{n}" for n in range(2)], "price": prices})
        pq.write_table(part, root / f"{name}.parquet")
    fields = FieldTable(root, "sku", (), SCHEMA)
    assert [fields.fields(i) for i in ("a1", "b0", "b1")] == [{"price": 2.0}, {"price": 2.5}, {}]


@pytest.mark.parametrize(
    ("text", "asked", "message"),
    [
        ("sku,price\na,1\na,2\n", (), r"line 3: expected a unique item id .* 'a' as in .*2"),
        ("sku,price\n,1\n", (), r"line 2: expected an item id in column 'sku', found none"),
        ("sku,colour\na,red\n", (), "expected columns beside ids and attributes, found none"),
        ("sku,colour\na,red\n", ("colour",), "neither attributes nor the ids, found 'colour'"),
        ("sku,price\na,1\n", ("prize",), r"no column 'prize'.*price"),
        ("id,price\na,1\n", (), "no column 'sku'"),
    ],
)
def test_malformed_tables_are_rejected(table, text, asked, message):
    with pytest.raises(UserError, match=message):
        FieldTable(table(text), "sku", asked, SCHEMA)


def rows(*numbers):
    return "".join(f"val-000000-{n:03d},{10 + n},{'acme' if n % 2 else 'nord'}\n" for n in numbers)


def test_the_program_stores_them(tiny_bundle, tiny_shards, bundle, table, tmp_path):
    path = table("sku,price,brand\n" + rows(*range(10)))
    command = [sys.executable, PROGRAM, "--bundle", tiny_bundle, "--catalogue", tiny_shards]
    command += ["--out", tmp_path / "g", "--split", "val", "--fields", path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: expected --fields and --id-column together")
    command += ["--id-column", "sku"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "field 'price': whole numbers, 10 of 10 rows, 10 to 19\n" in done.stdout
    assert f"fields price, brand of {path}; items embedded now without a row: 2\n" in done.stdout
    with closing(open_gallery(tmp_path / "g", bundle)) as gallery:
        assert gallery.get("val-000000-003").fields == {"price": 13, "brand": "acme"}
        assert gallery.get("val-000000-011").fields == {}
        brand, price = gallery.facets()
        assert brand == Facet("brand", ("acme", "nord"), None, None)
        assert (price.low, price.high) == (10, 19)


def test_fields_of_other_items_are_rejected_before_embedding(
    bundle, session, tiny_shards, table, tmp_path
):
    other = FieldTable(table("sku,price,brand\nx,1,acme\n"), "sku", (), bundle.schema)
    message = "column 'sku', found none of 12 from 'val-.*-000' to 'val-.*-011'; name their column"
    with pytest.raises(UserError, match=message):
        build_with(
            partial(embed_here, bundle, session),
            *(bundle, tiny_shards, tmp_path / "g", "val"),
            fields=other,
        )
    assert not list(tmp_path.glob(".g*"))


@pytest.mark.parametrize("number", [0, 5, 11])
def test_a_table_of_few_items_is_found_wherever_they_stand(
    number, bundle, session, tiny_shards, table, tmp_path, monkeypatch
):
    monkeypatch.setattr(embedding, "BATCH", 4)
    fields = FieldTable(table("sku,price,brand\n" + rows(number)), "sku", (), bundle.schema)
    embed = partial(embed_here, bundle, session)
    build_with(embed, bundle, tiny_shards, tmp_path / "g", "val", fields=fields)
    assert fields.unmatched == 11
    with closing(open_gallery(tmp_path / "g", bundle)) as gallery:
        assert gallery.get(f"val-000000-{number:03d}").fields["price"] == 10 + number


def test_sample_ids_are_few_and_evenly_spaced(tiny_shards):
    index = ShardIndex.read(tiny_shards)
    whole = sample_ids(index, "val", 1000)
    assert len(whole) == index.count("val") == 12
    assert sample_ids(index, "val", 5) == whole[::3]
    assert sample_ids(index, "val", 1) == whole[:1]
