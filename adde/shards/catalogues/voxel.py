"""One clothed figure: what can be worn, what of it can be seen, and how it is drawn.

The figures are the style `voxel-art` of dicebear-styles (CC0). What is labelled is named here in
words and pinned; everything else (skin, hair, beard, face, background, place and scale) is drawn
by DiceBear from the figure's seed, so two figures of one seed differ only in what was pinned.
"""

import io
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import resvg_py
from dicebear import Avatar, Style
from PIL import Image

Look = Mapping[str, str | None]
"""What a figure wears, by attribute; None where an attribute cannot be seen on it."""

COLOURS = {
    "black": "#22252b",
    "white": "#f6f6f4",
    "grey": "#8c9097",
    "red": "#d62828",
    "yellow": "#f7d23e",
    "green": "#2f9e44",
    "blue": "#2563eb",
    "pink": "#f48fb1",
}
"""Named colours as the front of a garment shows them; its top is lighter, its side darker."""

MANNEQUIN = "mannequin"
"""A colour that no garment is labelled with, of those that are not meant."""

_PAINT = {**COLOURS, MANNEQUIN: "#9d90b5"}

HIDDEN = {
    "plain": {"layer_colour"},
    "stripes": {"layer_colour"},
    "checker": {"layer_colour"},
    "overalls": {"layer_colour"},
    "hoodie": {"layer_colour"},
    "jacket": set[str](),
    "tie": set[str](),
    "coat": {"top_colour"},
    "suit": {"top_colour"},
    "dress": {"top_colour", "trousers_colour"},
}
"""Outfits, and the attributes that cannot be seen with each."""

HEADWEAR = {
    "none": None,
    "cap": "cap",
    "beanie": "beanie",
    "bear_ears": "animalEars",
    "bunny_ears": "bunnyEars",
}
GLASSES = {
    "none": None,
    "round": "round",
    "square": "square",
    "shades": "shades",
    "cat_eye": "cat",
    "visor": "visor",
}

_HAIR = (
    *("short", "spiky", "bowl", "sideSwept", "curly", "mohawk", "buns", "ponytail", "bob", "afro"),
    *("shoulderLength", "longStraight", "longWavy", "partedLong", "braids", "twinTails"),
    "halfShaved",
)
_BACKGROUNDS = [
    *("#b6e3f4", "#c0aede", "#d1d4f9", "#ffd5dc", "#ffdfbf", "#d8f3dc", "#fdf0d5", "#cfd8dc"),
    *("#e9d8a6", "#a8dadc", "#f1c0e8", "#b8c0ff", "#ced4da", "#94b0a4", "#c9ada7", "#8fa6c4"),
]
_COLOUR_OPTION = {
    "top_colour": "shirtColor",
    "layer_colour": "jacketColor",
    "trousers_colour": "pantsColor",
    "shoes_colour": "shoesColor",
    "headwear_colour": "hatColor",
}
# The style paints the shirt under a suit at 15 % of its colour and leaves a sliver of shaded leg
# below a dress: at 64 pixels a small network named the one in 16 % and the other in 82 % of cases.
_TOO_LITTLE_SHOWN = {
    "suit": {"shirtColor": COLOURS["white"]},
    "dress": {"pantsColor": COLOURS["black"]},
}
# Shifts in percent. At the largest scale and shift the longest ears and the shoes still lie
# inside the picture.
_NUISANCES = {
    "backgroundColor": _BACKGROUNDS,
    "scale": [0.86, 0.97],
    "translateX": [-6, 6],
    "translateY": [-1.5, 1.5],
}


def visible(attribute: str, look: Look) -> bool:
    """Whether changing `attribute` would change the picture of a figure with this look."""
    if attribute == "headwear_colour":
        return look["headwear"] != "none"
    return attribute not in HIDDEN[str(look["outfit"])]


def ambiguous(look: Look) -> bool:
    """Whether another look gives the same picture, or one that nobody would name this way.

    A layer in the colour beneath it vanishes, the stripes are white, and so is the shirt under a
    suit: a jacket over white looks like one.
    """
    top, layer = look["top_colour"], look["layer_colour"]
    return {
        "stripes": top == "white",
        "overalls": top == look["trousers_colour"],
        "jacket": top in (layer, "white"),
        "tie": top == layer,
        "suit": layer == "white",
    }.get(str(look["outfit"]), False)


def draw(look: Look, seed: str, size: int) -> Image.Image:
    """Draws one figure: an RGB picture of `size` x `size` pixels.

    Args:
        look: attribute -> word; what is left out or None is drawn from the seed like the rest.
        seed: decides everything that `look` does not.
        size: side in pixels.
    """
    svg = Avatar(_style(), {"seed": seed, **_NUISANCES, **_options(look)}).to_string()
    # Without this, resvg scans the machine's fonts for every picture.
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


def _options(look: Look) -> dict[str, Any]:
    """DiceBear's options for what a figure wears."""
    options: dict[str, Any] = {
        option: _PAINT[colour]
        for attribute, option in _COLOUR_OPTION.items()
        if (colour := look.get(attribute)) is not None
    }
    if outfit := look.get("outfit"):
        options["outfitVariant"] = outfit
        options |= _TOO_LITTLE_SHOWN.get(outfit, {})
    if headwear := look.get("headwear"):
        # Hats and hair are one component of the style: a hat takes the place of the hair.
        hat = HEADWEAR[headwear]
        options |= {"topVariant": hat, "topProbability": 100} if hat else {"topVariant": [*_HAIR]}
    if glasses := look.get("glasses"):
        frame = GLASSES[glasses]
        options |= {"glassesProbability": 100 if frame else 0}
        options |= {"glassesVariant": frame} if frame else {}
    return options


@cache
def _style() -> Style:
    """The style, read and validated once per process."""
    definition = files("dicebear_styles").joinpath("voxel-art.json").read_text("utf-8")
    return Style(json.loads(definition))
