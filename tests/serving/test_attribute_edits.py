"""Parsing --set when names contain its syntax."""

import pytest

from adde.errors import UserError
from adde.schema import Attribute, Schema
from adde.serving.programs.query import parse_edits

SCHEMA = Schema(
    (
        Attribute("colour", ("red", "a=b", "=", "[1]")),
        Attribute("a=b.c", ("1", "2=3")),
        Attribute("a", ("b.c=1", "x")),
        Attribute('["a"', ("]", "=")),
    )
)


@pytest.fixture(scope="module")
def parse():
    return lambda *texts: parse_edits(texts, (), (), SCHEMA)


def test_every_value_of_every_attribute_can_be_given(parse):
    two_ways = []
    for attribute in SCHEMA.attributes:
        for value in attribute.values:
            try:
                assert parse(f"{attribute.name}={value}") == {attribute.name: value}
            except UserError:
                two_ways.append((attribute.name, value))
    assert two_ways == [("a=b.c", "1"), ("a", "b.c=1")]
    with pytest.raises(
        UserError, match=r"""'a=b\.c=1' is ambiguous: use --set '\["a", "b\.c=1"\]' or --set"""
    ):
        parse("a=b.c=1")
    assert parse('["a", "b.c=1"]', '["a=b.c", "1"]') == {"a": "b.c=1", "a=b.c": "1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("color=red", "unknown attribute 'color'; did you mean 'colour'"),
        ("colour=rad", "attribute 'colour': unknown value 'rad'"),
        ("a=b.c=3", r"attribute 'a': unknown value 'b\.c=3'"),
        ("colour=", "--set: expected ATTRIBUTE=VALUE, found 'colour='"),
        ("=red", "--set: expected ATTRIBUTE=VALUE"),
        ('["colour"]', "--set: expected ATTRIBUTE=VALUE"),
        ('{"colour": "red"}', "--set: expected ATTRIBUTE=VALUE"),
        ("[" * 5000, "--set: expected ATTRIBUTE=VALUE"),
    ],
)
def test_errors_are_reported(parse, text, message):
    with pytest.raises(UserError, match=message):
        parse(text)
