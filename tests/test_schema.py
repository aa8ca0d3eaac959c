"""Schemas: the algebra of labels and columns, against loops written from the definition."""

import json
import string

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adde.errors import UserError, did_you_mean
from adde.schema import (
    MAX_MULTIPLE,
    RESERVED,
    SEVERAL,
    UNKNOWN,
    Attribute,
    Schema,
    dense_labels,
    label_of,
    shows,
    value_bits,
    values_of,
)

words = st.text(string.ascii_letters + "äß 0/,'\"", min_size=1, max_size=6)
words = words.filter(lambda word: word not in RESERVED)
attributes = st.builds(
    Attribute, words, st.lists(words, min_size=2, max_size=5, unique=True).map(tuple)
)
schemas = st.lists(attributes, min_size=1, max_size=5, unique_by=lambda a: a.name).map(
    lambda found: Schema(tuple(found))
)


@st.composite
def schemas_with_labels(draw, tables=1):
    """A schema and `tables` arrays of labels (B, A), UNKNOWN among them."""
    schema = draw(schemas)
    items = draw(st.integers(1, 6))
    columns = [
        [
            draw(arrays(np.int64, items, elements=st.integers(UNKNOWN, size - 1)))
            for _ in range(tables)
        ]
        for size in schema.sizes
    ]
    return (schema, *(np.stack([c[table] for c in columns], axis=1) for table in range(tables)))


@given(schemas)
def test_columns_are_values_in_order(schema):
    columns = [(a, v) for a, attribute in enumerate(schema.attributes) for v in attribute.values]
    assert schema.num_values == len(columns)
    assert schema.attribute_of_column.tolist() == [a for a, _ in columns]
    for name, offset, attribute in zip(schema.names, schema.offsets, schema.attributes):
        for label, value in enumerate(attribute.values):
            assert schema.value_index(name, value) == label
            assert columns[offset + label] == (schema.attribute_index(name), value)


@given(schemas_with_labels())
def test_decode_then_encode_is_nothing(given_):
    schema, labels = given_
    for row in labels:
        named = schema.decode(row)
        np.testing.assert_array_equal(schema.encode(named), row)
        known = {name: value for name, value in named.items() if value is not None}
        np.testing.assert_array_equal(schema.encode(known), row)
        assert list(named) == list(schema.names)


@given(schemas_with_labels())
def test_multi_hot_by_definition(given_):
    schema, labels = given_
    expected = np.zeros((len(labels), schema.num_values))
    for b, row in enumerate(labels):
        for a, label in enumerate(row):
            if label >= 0:
                expected[b, sum(schema.sizes[:a]) + label] = 1
    hot = schema.multi_hot(labels)
    assert hot.dtype == np.float32
    np.testing.assert_array_equal(hot, expected)


@given(schemas_with_labels(tables=2))
def test_indicator_makes_the_edit(given_):
    schema, labels, targets = given_
    edit = schema.indicator(labels, targets)
    np.testing.assert_array_equal(schema.multi_hot(labels) + edit, schema.multi_hot(targets))
    for a, (offset, size) in enumerate(zip(schema.offsets, schema.sizes)):
        block = edit[:, offset : offset + size]
        assert ((block == 1).sum(axis=1) <= 1).all()
        assert ((block == -1).sum(axis=1) <= 1).all()
        assert not block[labels[:, a] == targets[:, a]].any()
        unknown = labels[:, a] == UNKNOWN
        assert (block[unknown] >= 0).all()  # nothing to take away
    np.testing.assert_array_equal(schema.indicator(targets, labels), -edit)


@given(schemas)
def test_json_and_hash(schema):
    again = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert again == schema
    assert again.hash == schema.hash
    schema.require_same(again, "a", "b")
    first = schema.attributes[0]
    swapped = Attribute(first.name, first.values[::-1])
    other = Schema((swapped, *schema.attributes[1:]))
    assert other.hash != schema.hash


def test_hash_is_what_it_was():
    # Shards, checkpoints and bundles that exist carry it; it may not drift.
    schema = Schema((Attribute("größe", ("s", "m")), Attribute("colour", ("red", "blue"))))
    assert schema.hash == "cf9352ec3c84a7646473615de1eb52d4c414e19fd3536caadaec8dd8c8312a3e"


def test_another_schema_is_refused_with_the_difference():
    mine = Schema((Attribute("colour", ("red", "blue")), Attribute("fit", ("slim", "wide"))))
    values = Schema((Attribute("colour", ("red", "blue")), Attribute("fit", ("slim", "loose"))))
    with pytest.raises(UserError) as error:
        mine.require_same(values, "data/shop", "runs/x")
    message = str(error.value)
    assert message.startswith("data/shop and runs/x have different schemas: ")
    assert mine.hash in message
    assert values.hash in message
    assert "first difference: values of 'fit': ['slim', 'wide'] and ['slim', 'loose']" in message
    names = Schema((Attribute("colour", ("red", "blue")),))
    with pytest.raises(UserError, match=r"attributes \['colour', 'fit'\] and \['colour'\]"):
        mine.require_same(names, "a", "b")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ((), "at least one attribute"),
        ((Attribute("a", ("x",)),), r"attribute 'a': expected at least two values, found \['x'\]"),
        ((Attribute("a", ("x", "x")),), "attribute 'a': value 'x' appears twice"),
        ((Attribute("a", ("x", "")),), "attribute 'a': value 1: expected a name"),
        ((Attribute("", ("x", "y")),), "attribute 0: expected a name"),
        ((Attribute("a", ("x", "y")), Attribute("a", ("z", "w"))), "attribute 'a' appears twice"),
    ],
)
def test_senseless_schemas(attributes, message):
    with pytest.raises(UserError, match=message):
        Schema(attributes)


def test_unknown_words_name_the_nearest():
    schema = Schema((Attribute("colour", ("red", "navy", "green")), Attribute("fit", ("a", "b"))))
    with pytest.raises(UserError, match="unknown attribute 'color'; did you mean 'colour'"):
        schema.encode({"color": "red"})
    with pytest.raises(UserError, match="'colour': unknown value 'nawy'; did you mean 'navy'"):
        schema.encode({"colour": "nawy"})
    with pytest.raises(UserError, match="unknown value '#ff0000'; valid: 'red', 'navy', 'green'"):
        schema.encode({"colour": "#ff0000"})
    assert did_you_mean("q", map(str, range(99))).endswith("'19', ...")


@pytest.mark.parametrize("junk", [None, [], {}, {"attributes": [{"name": "a"}]}, {"attributes": 3}])
def test_json_that_is_no_schema(junk):
    with pytest.raises(UserError, match=r"schema\.json: expected .*\"attributes\""):
        Schema.from_json(junk, "schema.json")


def test_a_mark_for_colours_is_written_and_leaves_the_hash():
    plain = Schema((Attribute("top_colour", ("r", "g")), Attribute("Farbe", ("r", "g"))))
    assert "colour" not in plain.to_json()["attributes"][1]
    for schema, marked in ((plain.with_colours(), (True, False)),
                           (plain.with_colours(["Farbe"]), (True, True))):  # fmt: skip
        assert tuple(a.colour for a in schema.attributes) == marked
        assert schema.hash == plain.hash and schema.names == plain.names
        assert Schema.from_json(schema.to_json()) == schema != plain
    with pytest.raises(UserError, match=r"unknown attribute 'Farben'; did you mean 'Farbe'"):
        plain.with_colours(["Farben"])
    other = Schema((Attribute("discolour", ("r", "g")), Attribute("hued", ("r", "g"))))
    assert other.with_colours() == other


PALETTE = Schema(
    (Attribute("kind", ("shirt", "sock")), Attribute("colour", ("red", "green", "blue"), True))
)
palettes = st.lists(st.sets(st.integers(0, 2)), min_size=1, max_size=8)


@given(palettes, st.data())
def test_labels_of_sets_are_sets(sets, data):
    labels = np.array([[UNKNOWN, label_of(sorted(each))] for each in sets])
    values = ("red", "green", "blue")
    for each, row in zip(sets, labels):
        assert set(values_of(int(row[1]))) == each
        named = [values[value] for value in sorted(each)]
        assert PALETTE.decode(row) == {"kind": None, "colour": named or None}
        given_ = data.draw(st.permutations(named))
        assert PALETTE.encode({"colour": [*given_, *given_[:1]]})[1] == row[1]
        assert PALETTE.text(1, int(row[1])) == (", ".join(named) or None)
    assert PALETTE.is_label(labels).all()
    # Sets of one value are that value.
    assert all((row[1] < SEVERAL) == (len(each) < 2) for each, row in zip(sets, labels))
    for kind in (labels, torch.from_numpy(labels)):
        bits = value_bits(kind[:, 1]).tolist()
        assert bits == [sum(2**value for value in each) for each in sets]
        for value in range(3):
            asked = kind[:, 1] * 0 + value
            assert shows(kind[:, 1], asked).tolist() == [value in each for each in sets]
    hot = PALETTE.multi_hot(labels)
    for each, row in zip(sets, hot):
        expected = [1 / len(each) if value in each else 0 for value in range(3)]
        np.testing.assert_allclose(row, [0, 0, *expected], rtol=1e-6)
    dense = dense_labels(labels)[:, 1].tolist()
    assert all(
        (a == b) == (x == y) for a, x in zip(dense, sets) for b, y in zip(dense, sets)
    ) and all((a == UNKNOWN) == (not x) for a, x in zip(dense, sets))


def test_the_mark_is_written_only_where_it_is_set():
    plain = Schema((Attribute("colour", ("red", "green", "blue")),))
    assert plain.to_json() == {
        "attributes": [{"name": "colour", "values": ["red", "green", "blue"]}]
    }
    marked = PALETTE.to_json()["attributes"][1]
    assert marked == {"name": "colour", "values": ["red", "green", "blue"], "multiple": True}
    assert Schema.from_json(PALETTE.to_json()) == PALETTE
    unmarked = Schema((PALETTE.attributes[0], Attribute("colour", ("red", "green", "blue"))))
    with pytest.raises(UserError, match="'colour' allows several values and one value"):
        PALETTE.require_same(unmarked, "a", "b")


def test_sets_that_the_schema_does_not_allow():
    with pytest.raises(UserError, match=r"'kind': expected one value, found the list \['sock'\]"):
        PALETTE.encode({"kind": ["sock"]})
    with pytest.raises(UserError, match="'colour': unknown value 'rad'"):
        PALETTE.encode({"colour": ["red", "rad"]})
    many = tuple(map(str, range(MAX_MULTIPLE + 1)))
    with pytest.raises(UserError, match=r"'x': expected at most 62 values, .* found 63"):
        Schema((Attribute("x", many, True),))
    whole = Schema((Attribute("x", many[1:], True),))
    every = whole.encode({"x": many[1:]})
    assert whole.decode(every)["x"] == list(many[1:]) and whole.is_label(every[None]).all()
    wrong = np.array([[0, SEVERAL + 8], [0, SEVERAL + 2], [0, 3], [SEVERAL + 3, 0]])
    assert PALETTE.is_label(wrong).tolist() == [[1, 0], [1, 0], [1, 0], [0, 1]]
