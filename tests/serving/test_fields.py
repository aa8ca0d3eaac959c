"""Fields of a table, joined to items when a gallery is built."""

import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from adde.errors import UserError
from adde.schema import Attribute, Schema
from adde.serving import embedding
from adde.serving.build import build_with, open_gallery
from adde.serving.embedding import embed_here, spaced_ids
from adde.serving.facets import Facet
from adde.serving.fields import FieldTable
from adde.shards.index import ShardIndex

SCHEMA = Schema((Attribute("colour", ("red", "green")),))
PROGRAM = Path(__file__).parents[2] / "serve_onnx" / "build_gallery.py"


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / "items.csv"
        path.write_text(text)
        return path

    return write


def test_cells_become_what_their_column_holds(table):
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


@pytest.mark.parametrize(
    ("text", "asked", "message"),
    [
        ("sku,price\na,1\na,2\n", (), r"line 3: expected an item id of its own .* 'a' as in .*2"),
        ("sku,price\n,1\n", (), r"line 2: expected an item id in column 'sku', found none"),
        ("sku,colour\na,red\n", (), "expected columns beside ids and attributes, found none"),
        ("sku,colour\na,red\n", ("colour",), "neither attributes nor the ids, found 'colour'"),
        ("sku,price\na,1\n", ("prize",), r"no column 'prize'.*price"),
        ("id,price\na,1\n", (), "no column 'sku'"),
    ],
)
def test_tables_that_are_none_are_refused(table, text, asked, message):
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
    assert f"fields price, brand of {path}; of the items embedded now it lacks 2\n" in done.stdout
    with closing(open_gallery(tmp_path / "g", bundle)) as gallery:
        assert gallery.get("val-000000-003").fields == {"price": 13, "brand": "acme"}
        assert gallery.get("val-000000-011").fields == {}
        brand, price = gallery.facets()
        assert brand == Facet("brand", ("acme", "nord"), None, None)
        assert (price.low, price.high) == (10, 19)


def test_fields_of_other_items_are_refused_before_any_is_embedded(
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


def test_looked_at_are_few_of_many_and_evenly_spaced(tiny_shards):
    index = ShardIndex.read(tiny_shards)
    whole = spaced_ids(index, "val", 1000)
    assert len(whole) == index.count("val") == 12
    assert spaced_ids(index, "val", 5) == whole[::3]
    assert spaced_ids(index, "val", 1) == whole[:1]
