"""Picture files as a table names them, and the bytes that are stored in shards."""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from adde.errors import UserError
from adde.preprocess import decode, decoding, orientation
from adde.shards.catalogues.catalogue import PictureSource
from adde.shards.catalogues.tables.table import Table, plain

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats that shards may hold, and their extensions."""

ENDINGS = ("", *(end for e in (".jpg", ".jpeg", ".png", ".webp") for end in (e, e.upper())))
"""Endings that a cell may lack; tables often hold only an id."""

SAMPLED = 200
"""Cells of a column that decide whether it names pictures."""

JPEG_QUALITY = 92


@dataclass(frozen=True)
class PictureFile(PictureSource):
    """A picture file as a table names it."""

    images: Path
    name: str
    place: str
    """Place in the table, for messages."""
    size: int
    """Cap on the short side, pixels."""

    def read(self) -> tuple[bytes, str]:
        """Return the picture with a short side of at most `size`; see `PictureSource.read`."""
        path = find_picture(self.images, self.name)
        if path is None:
            raise UserError(
                f"{self.place}: expected a picture file below {self.images}, found {self.name!r}"
            )
        try:
            return store(path.read_bytes(), str(path), self.size)
        except OSError as error:
            raise UserError(f"{path}: expected a readable file, found: {error.strerror}") from None

    def stamp(self) -> str:
        """Return the file's size and modification time."""
        path = find_picture(self.images, self.name)
        status = path.stat() if path else None
        return repr((self.size, status and (status.st_size, status.st_mtime_ns)))


def picture_files(
    images: Path, names: Sequence[str], places: Sequence[str], size: int
) -> Callable[[int], PictureFile]:
    """Return the picture files of rows, whether they exist or not; `images` is their folder."""
    return lambda row: PictureFile(images, names[row], places[row], size)


def find_picture(images: Path, cell: str, endings: Iterable[str] = ENDINGS) -> Path | None:
    """Return the file below `images` that a cell names, or None.

    If no file has the exact name, one whose name looks the same is accepted
    (`adde.shards.catalogues.tables.table.plain`): other Unicode bytes, a suffix in capitals, or
    Windows' folder separator.
    """
    if not cell:
        return None
    try:
        for name in (cell, _ending_swapped(cell), cell.replace("\\", "/")):
            for ending in endings:
                if os.path.isfile(path := _below(images, name + ending)):  # noqa: PTH113
                    return Path(path)
        return _look_alike(images, cell.replace("\\", "/"), endings)
    except (ValueError, OSError):  # a NUL in the cell, or a name too long for a file
        return None


def _below(images: Path, name: str) -> str:
    """Return the path of a name in a folder, or "" if it leads outside."""
    root = images.absolute()
    # Resolve `..` in the text only: symbolic links inside the folder may lead anywhere.
    path = os.path.normpath(root / name)
    return path if path.startswith(os.path.normpath(root) + os.sep) else ""


def _ending_swapped(cell: str) -> str:
    stem, ending = os.path.splitext(cell)  # noqa: PTH122
    return stem + ending.swapcase()


def _look_alike(images: Path, name: str, endings: Iterable[str]) -> Path | None:
    """Return the file whose path looks the same, compared folder by folder."""
    if not (path := _below(images, name)):
        return None
    *folders, last = Path(path).relative_to(os.path.normpath(images.absolute())).parts
    folder = images
    for part in folders:
        if not (folder / part).is_dir():
            part = _odd_names(folder, folder.stat().st_mtime_ns).get(plain(part), part)
        folder = folder / part
        if not folder.is_dir():
            return None
    odd = _odd_names(folder, folder.stat().st_mtime_ns)
    for alike in (plain(last + ending) for ending in endings):
        if (found := folder / odd.get(alike, alike)).is_file():
            return found
    return None


@lru_cache(maxsize=1024)
def _odd_names(folder: Path, changed: int) -> dict[str, str]:
    """Map plain forms to the names in a folder that differ from them.

    `changed` is the folder's modification time, so that the cache notices changes.
    """
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries)
        return {alike: name for name in names if (alike := plain(name)) != name}


def choose_image_column(table: Table, images: Path, asked: str | None) -> str:
    """Return the column asked for, or the one most of whose first cells name files below `images`.

    Raises:
        UserError: There is no such column, no column names files, or two name equally many.
    """
    if asked is not None:
        table.column(asked)
        return asked
    # Prefer a column with complete file names to one without endings.
    for endings in (ENDINGS[:1], ENDINGS):
        shares = {name: _share(images, cells, endings) for name, cells in table.columns.items()}
        best = max(shares.values())
        names = [name for name, share in shares.items() if share == best]
        if best >= 0.5 and len(names) > 1:
            raise UserError(
                f"{table.path}: expected one column of pictures, found {names}; "
                "name one with --image-column"
            )
        if best >= 0.5:
            return names[0]
    shown = "\n  ".join(f"{name}: {cells[0]!r}" for name, cells in table.columns.items())
    raise UserError(
        f"{table.path}: expected a column that names picture files below {images}, found none "
        f"among these (with their first cells):\n  {shown}\n"
        "set --images to the folder that the names start from, or name the --image-column"
    )


def _share(images: Path, cells: Sequence[str], endings: Iterable[str]) -> float:
    sampled = list(islice((cell for cell in cells if cell), SAMPLED))
    found = [cell for cell in sampled if find_picture(images, cell, endings)]
    return len(found) / max(1, len(sampled))


def encode(image: Image.Image, kind: str, **options: Any) -> tuple[bytes, str]:
    """Return the bytes of a picture in a format of EXTENSIONS, and its extension."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue(), EXTENSIONS[kind]


def store(content: bytes, name: str, size: int) -> tuple[bytes, str]:
    """Return the picture to store: RGB and upright, with a short side of at most `size` pixels.

    A JPEG, PNG or WebP with these properties is stored byte for byte. Anything else is decoded,
    shrunk in proportion, and encoded as JPEG without chroma subsampling, which would blur small
    coloured parts.

    Returns:
        The bytes, and their extension "jpg", "png" or "webp".

    Raises:
        UserError: The picture does not decode; see `adde.preprocess.decode`.
    """
    image = decode(content, name, size)
    with decoding(name):
        if (extension := _stored_unchanged(content, size)) is not None:
            return content, extension
        scale = size / min(image.size)
        if scale < 1:
            width, height = (round(side * scale) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return encode(image, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def _stored_unchanged(content: bytes, size: int) -> str | None:
    """Return the extension of a picture that may be stored byte for byte, or None."""
    image: Image.Image = Image.open(io.BytesIO(content))
    plain = (
        image.mode == "RGB"
        and not image.has_transparency_data
        and min(image.size) <= size
        and orientation(image) == 1
        and getattr(image, "n_frames", 1) == 1
    )
    return EXTENSIONS.get(image.format or "") if plain else None
