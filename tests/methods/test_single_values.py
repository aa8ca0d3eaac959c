"""Methods that know one value per attribute say so before they are built."""

import pytest

from adde.errors import UserError
from adde.schema import Attribute, Schema
from adde.training.method import find_method

SCHEMA = Schema(
    (Attribute("kind", ("shirt", "sock")), Attribute("colour", ("red", "green"), multiple=True))
)


@pytest.mark.parametrize("name", ["decoder", "dna_gan", "glow"])
def test_attributes_of_several_values_are_refused(name):
    method = find_method(name)
    with pytest.raises(UserError, match=rf"method {name}: .* found 'colour', which may have sever"):
        method.build(method.Config(method=name), SCHEMA)
