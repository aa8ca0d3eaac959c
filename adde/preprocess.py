"""The one definition of how a picture becomes the network's input.

A picture file becomes an RGB array of one square size here (`load`); the affine step to the
network's numbers (`Preprocess.mean`, `std`) is part of the exported graph.
"""

import io
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from adde.errors import UserError, foreign

MAX_PIXELS = 64_000_000
"""Pictures that say they are larger are refused before they are decoded."""

UPRIGHT_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of each EXIF orientation upright (CIPA DC-008); any other is so already."""

Picture = npt.NDArray[np.uint8]

Fit = Literal["crop", "pad", "squash"]
"""How a picture becomes square: cut to the square in its centre; whole, with bars beside it in the
colours of its border; or whole, squashed. A square picture is the same in all three."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom, in whole pixels."""


@dataclass(frozen=True)
class Preprocess:
    """Side of the square input in pixels, per-channel mean and std on the 0..1 scale, and how a
    picture becomes square.
    """

    size: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fit: Fit = "crop"

    def load(
        self,
        source: bytes | Path,
        name: str = "picture",
        formats: tuple[str, ...] | None = None,
    ) -> Picture:
        """Decodes and fits one picture: (size, size, 3) uint8, RGB.

        Raises:
            UserError: see `decode`.
        """
        return fit(decode(source, name, self.size, formats), self.size, self.fit)

    def to_json(self) -> dict[str, Any]:
        """The `preprocess` entry of bundle.json."""
        numbers = {"size": self.size, "mean": list(self.mean), "std": list(self.std)}
        return {**numbers, "fit": self.fit}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Preprocess":
        """Reads what `to_json` gave; before there was `fit`, pictures were cropped.

        Raises:
            UserError: `fit` is none that is known.
        """
        found = value.get("fit", "crop")
        if found not in get_args(Fit):
            raise UserError(f"preprocess.fit: expected one of {get_args(Fit)}, found {found!r}")
        return cls(value["size"], tuple(value["mean"]), tuple(value["std"]), found)


def decode(
    source: bytes | Path,
    name: str = "picture",
    draft_size: int | None = None,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """Decodes one picture to RGB, upright; transparency is laid on white.

    Args:
        source: the file's bytes, or its path.
        name: what to call it in errors, where `source` is bytes.
        draft_size: JPEGs are decoded at the smallest scale whose short side is at least this.
        formats: Pillow's names of those that are tried; None: all that it knows.

    Raises:
        UserError: the bytes are no picture, are cut short, or decode to over MAX_PIXELS.
    """
    if isinstance(source, Path):
        name = str(source)
    with decoding(name):
        # Read whole: Pillow leaves a file open when its picture does not decode.
        content = source.read_bytes() if isinstance(source, Path) else source
        image = Image.open(io.BytesIO(content), formats=formats)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise UserError(
                f"{name}: expected at most {MAX_PIXELS:,} pixels, found {width} x {height}"
            )
        if draft_size is not None:
            # Pillow keeps both sides at or above what is asked, so ask for the short side.
            image.draft("RGB", (draft_size, draft_size))
        image.load()  # some formats turn themselves, and then have no orientation any more
        turn = UPRIGHT_TRANSPOSES.get(orientation(image))
        return _to_rgb(image if turn is None else image.transpose(turn))


@contextmanager
def decoding(name: str) -> Generator[None]:
    """Turns all that Pillow raises at a picture's bytes into a UserError that names it.

    Its warnings, of EXIF that is cut short or of sizes below MAX_PIXELS, are kept to themselves:
    they name no file, and the picture is one that shows.
    """
    with foreign(name, "a picture that decodes"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except FileNotFoundError:
            raise UserError(f"{name}: no such file") from None
        except UnidentifiedImageError:  # its message shows an object of Python
            raise ValueError("no format that is known") from None


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none, or none that can be read.

    Of all tags this one alone is looked at: others may be of types that no standard knows, on
    which Pillow's own `exif_transpose`, as it writes them anew, fails. Viewers show such pictures.
    """
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if isinstance(found, int) and found in UPRIGHT_TRANSPOSES else 1
    except Exception:  # whatever it is that stands there
        return 1


def fit(image: Image.Image, size: int, how: Fit = "crop") -> Picture:
    """Makes a picture square: (size, size, 3) uint8, resized bicubically with antialiasing."""
    taken, place = placement(image.size, size, how)
    left, top, right, bottom = place
    part = image.crop(taken) if how == "crop" else image
    resized = part.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    if resized.size == (size, size):
        return np.asarray(resized)
    square = np.empty((size, size, 3), np.uint8)
    square[top:bottom, left:right] = np.asarray(resized)
    draw_bars(square, np.asarray(image), place)
    return square


def placement(size: tuple[int, int], side: int, how: Fit) -> tuple[Box, Box]:
    """What is taken of a picture of (width, height), and its place in the square of `side`."""
    if how == "crop":
        edge = min(size)
        left, top = (size[0] - edge) // 2, (size[1] - edge) // 2
        return (left, top, left + edge, top + edge), (0, 0, side, side)
    if how == "squash":
        return (0, 0, *size), (0, 0, side, side)
    longest = max(size)
    width, height = (max(1, (2 * side * length + longest) // (2 * longest)) for length in size)
    left, top = (side - width) // 2, (side - height) // 2
    return (0, 0, *size), (left, top, left + width, top + height)


def draw_bars(square: Picture, picture: Picture, place: Box) -> None:
    """Fills what a picture leaves of its square: each bar has, per channel, the median level of
    the row or column of the picture that it continues; the lower one of two.

    Args:
        square: (side, side, 3), written outside `place`.
        picture: (height, width, 3) before it was resized, so that the colour does not depend on
            how that is done.
        place: of the picture in the square.
    """
    left, top, right, bottom = place
    for bar, edge in (
        (square[:, :left], picture[:, 0]),
        (square[:, right:], picture[:, -1]),
        (square[:top], picture[0]),
        (square[bottom:], picture[-1]),
    ):
        if bar.size:
            bar[:] = np.sort(edge, axis=0)[(len(edge) - 1) // 2]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose white is not defined")
    if image.mode.startswith("I"):
        # 16-bit greyscale, which Pillow would cut off at 255 instead of scaling.
        levels = np.asarray(image).clip(0, 65_535)
        image = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    if image.mode == "RGB":
        image.load()  # convert would copy it
        return image
    return image.convert("RGB")
