"""JPEGs that need nothing but decoding, which is most of a catalogue."""

import io
from contextlib import suppress

import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from PIL import Image

from adde.errors import UserError
from adde.preprocess import MAX_PIXELS, Picture, decode, decoding, orientation


def plain_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of an upright JPEG in colour whose size is not refused; None of any other
    file. Reads the head only.
    """
    with suppress(UserError), decoding("picture"):
        image: Image.Image = Image.open(io.BytesIO(content), formats=("JPEG",))
        if image.mode == "RGB" and image.width * image.height <= MAX_PIXELS:
            return image.size if orientation(image) == 1 else None
    return None


def is_plain(content: bytes) -> bool:
    """Whether any decoder makes of a file what `adde.preprocess.decode` does, up to rounding."""
    return plain_size(content) is not None


def decode_pixels(content: bytes, name: str, draft_size: int) -> Picture:
    """The pixels (height, width, 3) uint8 that `adde.preprocess.decode` gives, to the bit, without
    Pillow's copies where a file is a plain JPEG.

    Raises:
        UserError: see `adde.preprocess.decode`.
    """
    if size := plain_size(content):
        scale = min(size) // draft_size
        scale = next((s for s in (8, 4, 2) if s <= scale), 1)  # those that Pillow drafts at
        width, height = (-(-side // scale) for side in size)
        # What is damaged is left to Pillow, which takes some of it and names the rest.
        with suppress(Exception):
            return simplejpeg.decode_jpeg(content, min_height=height, min_width=width)
    return np.array(decode(content, name, draft_size))
