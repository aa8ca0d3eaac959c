"""The answer picture: every picture is in it, right ones framed, for any input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from adde.serving.answer_picture import COLUMNS, GOOD, QUERY, TILE, AnswerTile, draw_answer


def area(image, colour):
    """Number of pixels of exactly this colour."""
    return int((np.asarray(image) == ImageColor.getrgb(colour)).all(axis=2).sum())


def tile(colour="#0000ff", good=None, size=(64, 64)):
    return AnswerTile(Image.new("RGB", size, colour), "1  item", ["0.9"], good)


def test_query_and_answers_are_shown_at_full_size():
    query = Image.new("RGB", (64, 64), "#ff00ff")
    drawn = draw_answer(query, {"colour": "blue"}, [tile() for _ in range(7)])
    assert area(drawn, "#ff00ff") == QUERY**2
    assert area(drawn, "#0000ff") == 7 * TILE**2
    assert area(drawn, GOOD) == 0


@pytest.mark.parametrize("good", [[True], [False, True, True], [None, False]])
def test_only_right_answers_are_framed(good):
    frames = area(draw_answer(Image.new("RGB", (9, 9)), {}, [tile(good=g) for g in good]), GOOD)
    one = area(draw_answer(Image.new("RGB", (9, 9)), {}, [tile(good=True)]), GOOD)
    assert one > 4 * TILE
    assert frames == sum(g is True for g in good) * one


def test_five_stand_in_a_row():
    query = Image.new("RGB", (64, 64))
    widths = [draw_answer(query, {}, [tile()] * n).width for n in (1, 4, 5, 6, 10)]
    heights = [draw_answer(query, {}, [tile()] * n).height for n in (5, 10, 11, 15)]
    assert COLUMNS == 5
    assert widths[0] < widths[1] < widths[2] == widths[3] == widths[4]
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_the_edit_is_written():
    query = Image.new("RGB", (64, 64), "white")
    red, teal = (draw_answer(query, {"colour": value}, []) for value in ("red", "teal"))
    assert red.size == teal.size
    assert red.tobytes() != teal.tobytes()


@given(
    mode=st.sampled_from(["RGB", "RGBA", "L", "P", "LA", "CMYK", "1"]),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    text=st.text(max_size=80),
    count=st.integers(0, 12),
)
@settings(max_examples=25, deadline=None)
def test_any_picture_and_any_text_can_be_drawn(mode, size, text, count):
    image = Image.new(mode, size)
    answers = [AnswerTile(image, text, [text, ""], True)] * count
    drawn = draw_answer(image, {text: text, "other": text}, answers)
    assert drawn.mode == "RGB"
    assert (area(drawn, GOOD) > 0) == (count > 0)
