"""Edits of known labels and the metrics of their answers, against plain loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adde.edits import FIRST, all_edits, wanted_metrics
from adde.schema import UNKNOWN

SIZES = (3, 2, 2)
label_tables = st.lists(
    st.tuples(*(st.integers(UNKNOWN, size - 1) for size in SIZES)), min_size=1, max_size=14
).map(lambda rows: np.array(rows, dtype=np.int64))


def as_set(edits):
    return {(int(r), tuple(v)) for r, v in zip(edits.reference, edits.values.tolist())}


def every_edit(labels, count):
    """All edits of `count` known labels to other values that one item shows together."""
    found = set()
    for row, own in enumerate(labels.tolist()):
        for attributes in itertools.combinations(range(len(own)), count):
            for other in labels.tolist():
                values = [other[a] if a in attributes else UNKNOWN for a in range(len(own))]
                if all(
                    UNKNOWN not in (own[a], other[a]) and own[a] != other[a] for a in attributes
                ):
                    found.add((row, tuple(values)))
    return found


@given(label_tables)
def test_single_edits_are_all_there_are(labels):
    edits = all_edits(labels, 1)
    assert as_set(edits) == every_edit(labels, 1)
    assert len(edits) == len(as_set(edits))
    few = all_edits(labels, 1, most=5)
    assert len(few) == min(5, len(edits)) and as_set(few) <= as_set(edits)


@given(label_tables, st.integers(2, 3))
def test_several_edits_are_of_known_labels_that_some_item_shows(labels, count):
    edits = all_edits(labels, count, most=300)
    assert as_set(edits) <= every_edit(labels, count)
    if every_edit(labels, count) and len(labels) < 5:  # 600 draws of a few items miss none
        assert as_set(edits) == every_edit(labels, count)
    again = all_edits(labels, count, most=300)
    np.testing.assert_array_equal(edits.values, again.values)


@given(label_tables, st.integers(0, 2**32 - 1))
def test_wanted_figures_are_those_of_the_definition(labels, seed):
    edits = all_edits(labels, 1)
    random = np.random.default_rng(seed)
    ranked = np.array([random.permutation(len(labels)) for _ in range(len(edits))])
    ranked = ranked.reshape(len(edits), len(labels))
    found = wanted_metrics(ranked, labels, edits)
    for at, (reference, values) in enumerate(zip(edits.reference, edits.values.tolist())):
        (attribute,) = (a for a, v in enumerate(values) if v != UNKNOWN)
        shows = labels[:, attribute] == values[attribute]
        answers = [row for row in ranked[at].tolist() if row != reference]
        wanted = min(FIRST, int(shows.sum()))
        assert found["first_wanted"][at] == shows[answers[0]]
        assert found["wanted@10"][at] == pytest.approx(sum(shows[answers[:wanted]]) / wanted)
