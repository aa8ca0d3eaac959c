"""Draw an answer as one picture: the query, its edits, and the best items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont, ImageOps

COLUMNS = 5
TILE = 168
"""Side of an answer's picture in pixels."""

QUERY = 256
"""Side of the query's picture in pixels."""

GAP = 20
FRAME = 5
LINE = 18

PAPER, INK, MUTED, RULE, GOOD = "#ffffff", "#1a1d21", "#6a7280", "#d9dde3", "#1f9d55"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class AnswerTile:
    """One answer: picture, title, lines of small print, and whether it is right.

    `good` draws a green frame (every attribute matches the target); None: not known.
    """

    image: Image.Image
    title: str
    lines: Sequence[str] = ()
    good: bool | None = None


def draw_answer(
    query: Image.Image, edits: Mapping[str, str], answers: Sequence[AnswerTile]
) -> Image.Image:
    """Draw query, edits (attribute to new value) and answers, best first, five per row.

    Pictures of any size and mode are scaled to fit. Text that is too long ends in an ellipsis.
    """
    rows = max(1, -(-len(answers) // COLUMNS))
    small_print = max((len(answer.lines) for answer in answers), default=0)
    row_height = TILE + 2 * FRAME + (1 + small_print) * LINE + GAP
    left = GAP + QUERY + 3 * GAP
    columns = min(COLUMNS, max(1, len(answers)))
    width = left + columns * (TILE + 2 * FRAME + GAP)
    query_height = QUERY + (2 + 2 * len(edits)) * LINE
    height = GAP + max(rows * row_height, query_height + GAP)
    canvas = Image.new("RGB", (width, height), PAPER)

    _draw_query(canvas, query, edits)
    _draw_arrow(canvas, GAP + QUERY + GAP, GAP + QUERY // 2)
    for number, answer in enumerate(answers):
        x = left + number % COLUMNS * (TILE + 2 * FRAME + GAP)
        _draw_tile(canvas, answer, x, GAP + number // COLUMNS * row_height)
    return canvas


def _draw_query(canvas: Image.Image, query: Image.Image, edits: Mapping[str, str]) -> None:
    draw = ImageDraw.Draw(canvas)
    canvas.paste(_fitted(query, QUERY), (GAP, GAP))
    draw.rectangle((GAP - 1, GAP - 1, GAP + QUERY, GAP + QUERY), outline=RULE)
    y = GAP + QUERY + LINE // 2
    _write(draw, (GAP, y), "this item, but" if edits else "items like this", 13, MUTED, QUERY)
    for attribute, value in edits.items():
        _write(draw, (GAP, y + LINE), attribute, 13, MUTED, QUERY)
        _write(draw, (GAP, y + 2 * LINE - 2), value, 18, INK, QUERY)
        y += 2 * LINE + 4


def _draw_arrow(canvas: Image.Image, x: int, y: int) -> None:
    draw = ImageDraw.Draw(canvas)
    draw.line((x, y, x + GAP - 4, y), fill=MUTED, width=2)
    draw.polygon((x + GAP, y, x + GAP - 8, y - 5, x + GAP - 8, y + 5), fill=MUTED)


def _draw_tile(canvas: Image.Image, answer: AnswerTile, x: int, y: int) -> None:
    draw = ImageDraw.Draw(canvas)
    side = TILE + 2 * FRAME
    if answer.good:
        draw.rounded_rectangle((x, y, x + side - 1, y + side - 1), FRAME, fill=GOOD)
    else:
        edge = FRAME - 1
        draw.rectangle((x + edge, y + edge, x + side - FRAME, y + side - FRAME), outline=RULE)
    canvas.paste(_fitted(answer.image, TILE), (x + FRAME, y + FRAME))
    _write(draw, (x + FRAME, y + side + 2), answer.title, 13, INK, TILE)
    for number, line in enumerate(answer.lines, start=1):
        _write(draw, (x + FRAME, y + side + 2 + number * LINE), line, 12, MUTED, TILE)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """Scale a picture to fit a square, on a paper-coloured background."""
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, PAPER)
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    return ImageOps.pad(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS, color=PAPER)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, width: int
) -> None:
    # Item ids are arbitrary text, and fonts reject control characters.
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    font = _font(size, text.isascii())
    if font.getlength(text) > width:
        while text and font.getlength(text + "...") > width:
            text = text[:-1]
        text += "..."
    draw.text(at, text, fill=colour, font=font)


@cache
def _font(size: int, ascii_only: bool) -> Font:
    """Return Pillow's built-in font, or a system font for text beyond ASCII."""
    if not ascii_only:
        for name in ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf"):
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)
