"""Preprocessing of pictures, shared by training, export and serving.

`Preprocess.load` turns a picture file into a square RGB array. The normalisation with
`Preprocess.mean` and `std` is part of the exported graph.
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

from adde.errors import UserError, untrusted

MAX_PIXELS = 64_000_000
"""Pictures with more pixels in their header are rejected before decoding."""

UPRIGHT_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes each EXIF orientation upright (CIPA DC-008)."""

Picture = npt.NDArray[np.uint8]

Fit = Literal["crop", "pad", "squash"]
"""How a picture becomes square: `crop` takes the central square; `pad` keeps the whole picture and
adds bars in the colours of its border; `squash` distorts it. Square pictures are unaffected."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom, in whole pixels."""


@dataclass(frozen=True)
class Preprocess:
    """Input side in pixels, per-channel mean and std on the 0..1 scale, and the fit to a square."""

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
        """Decode one picture and fit it to the square: (size, size, 3) uint8, RGB.

        Raises:
            UserError: see `decode`.
        """
        return fit(decode(source, name, self.size, formats), self.size, self.fit)

    def to_json(self) -> dict[str, Any]:
        """Return the `preprocess` entry of bundle.json."""
        numbers = {"size": self.size, "mean": list(self.mean), "std": list(self.std)}
        return {**numbers, "fit": self.fit}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Preprocess":
        """Read the output of `to_json`; without `fit`, as in older bundles, it is `crop`.

        Raises:
            UserError: `fit` has an unknown value.
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
    """Decode one picture to upright RGB; transparency is composited on white.

    Args:
        source: the file's bytes, or its path.
        name: used in errors if `source` is bytes.
        draft_size: JPEGs are decoded at the smallest scale whose short side is at least this.
        formats: Pillow's names of the accepted formats; None: all that Pillow supports.

    Raises:
        UserError: the bytes are no picture, are truncated, or have more than MAX_PIXELS.
    """
    if isinstance(source, Path):
        name = str(source)
    with decoding(name):
        # Read the whole file because Pillow leaves it open if decoding fails.
        content = source.read_bytes() if isinstance(source, Path) else source
        image = Image.open(io.BytesIO(content), formats=formats)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise UserError(
                f"{name}: expected at most {MAX_PIXELS:,} pixels, found {width} x {height}"
            )
        if draft_size is not None:
            # Pillow keeps both sides at or above the requested size.
            image.draft("RGB", (draft_size, draft_size))
        image.load()  # some formats apply and clear their orientation on load
        turn = UPRIGHT_TRANSPOSES.get(orientation(image))
        return _to_rgb(image if turn is None else image.transpose(turn))


@contextmanager
def decoding(name: str) -> Generator[None]:
    """Turn any exception that Pillow raises while decoding into a UserError naming the picture.

    Pillow's warnings (truncated EXIF, large sizes below MAX_PIXELS) are suppressed: they name no
    file, and the picture is usable.
    """
    with untrusted(name, "a picture that decodes"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except FileNotFoundError:
            raise UserError(f"{name}: no such file") from None
        except UnidentifiedImageError:  # its message contains the repr of a Python object
            raise ValueError("an unknown format") from None


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is missing or unreadable.

    Pillow's own `exif_transpose` rewrites all tags and fails on those of unknown types, although
    viewers display such pictures. Only the orientation is read here.
    """
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if isinstance(found, int) and found in UPRIGHT_TRANSPOSES else 1
    except Exception:  # Pillow raises many types on damaged EXIF
        return 1


def fit(image: Image.Image, size: int, how: Fit = "crop") -> Picture:
    """Make a picture square: (size, size, 3) uint8, bicubic with antialiasing."""
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
    """Return the part used of a picture of size (width, height), and its box in the square."""
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
    """Fill the parts of the square that the picture does not cover.

    Each bar has, per channel, the lower median of the adjacent row or column of the picture.

    Args:
        square: (side, side, 3), written outside `place`.
        picture: (height, width, 3) before resizing, so that the colour does not depend on the
            resizing method.
        place: box of the picture in the square.
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
        raise ValueError("floating-point pixels, which have no defined white level")
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit greyscale at 255 instead of scaling it.
        levels = np.asarray(image).clip(0, 65_535)
        image = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    if image.mode == "RGB":
        image.load()  # convert would copy
        return image
    return image.convert("RGB")
