"""Fast decoding of plain JPEGs, which most pictures of a catalogue are."""

import io
from contextlib import suppress

import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from PIL import Image

from adde.errors import UserError
from adde.preprocess import MAX_PIXELS, Picture, decode, decoding, orientation


def plain_size(content: bytes) -> tuple[int, int] | None:
    """Return the width and height of an upright colour JPEG of acceptable size, else None.

    Reads only the header.
    """
    with suppress(UserError), decoding("picture"):
        image: Image.Image = Image.open(io.BytesIO(content), formats=("JPEG",))
        if image.mode == "RGB" and image.width * image.height <= MAX_PIXELS:
            return image.size if orientation(image) == 1 else None
    return None


def is_plain(content: bytes) -> bool:
    """Whether every decoder agrees with `adde.preprocess.decode` on a file, up to rounding."""
    return plain_size(content) is not None


def decode_pixels(content: bytes, name: str, draft_size: int) -> Picture:
    """Return exactly the pixels (height, width, 3) uint8 of `adde.preprocess.decode`.

    Plain JPEGs are decoded without Pillow's copies.

    Raises:
        UserError: See `adde.preprocess.decode`.
    """
    if size := plain_size(content):
        scale = min(size) // draft_size
        scale = next((s for s in (8, 4, 2) if s <= scale), 1)  # the scales of Pillow's draft mode
        width, height = (-(-side // scale) for side in size)
        # Pillow decodes some damaged files and describes the fault of others.
        with suppress(Exception):
            return simplejpeg.decode_jpeg(content, min_height=height, min_width=width)
    return np.array(decode(content, name, draft_size))
