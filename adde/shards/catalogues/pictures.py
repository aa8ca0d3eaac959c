"""Picture files as a table names them, and the bytes of them that are stored."""

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from PIL import Image

from adde.errors import UserError
from adde.preprocess import decode, decoding, orientation
from adde.shards.catalogues.table import Table, plain

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats that are stored, and the extension each is stored under."""

ENDINGS = ("", *(end for e in (".jpg", ".jpeg", ".png", ".webp") for end in (e, e.upper())))
"""What a cell may lack at its end to name a file; tables often say an id only."""

LOOKED_AT = 200
"""Cells of a column that decide whether it names pictures."""

JPEG_QUALITY = 92


@dataclass(frozen=True)
class PictureFile:
    """A picture file as a table names it."""

    images: Path
    name: str
    place: str
    """Where in the table, for messages."""
    size: int
    """Cap on the short side, pixels."""

    def read(self) -> tuple[bytes, str]:
        """The picture, its short side at most `size`. Raises UserError as `Source.read`."""
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
        """The file's size and time of change."""
        path = find_picture(self.images, self.name)
        status = path.stat() if path else None
        return repr((self.size, status and (status.st_size, status.st_mtime_ns)))


@dataclass(frozen=True, eq=False)
class PictureFiles:
    """The picture files of a table's rows."""

    images: Path
    """Folder that the names start from."""
    names: Sequence[str]
    places: Sequence[str]
    size: int

    def __call__(self, row: int) -> PictureFile:
        """The row's file, whether it is there or not."""
        return PictureFile(self.images, self.names[row], self.places[row], self.size)


def find_picture(images: Path, cell: str, endings: Iterable[str] = ENDINGS) -> Path | None:
    """The file below `images` that a cell names, or None.

    Where no file has the exact name, one whose name looks the same is taken
    (`adde.shards.catalogues.table.plain`): other Unicode bytes, a suffix in capitals, or Windows'
    folder separator.
    """
    if not cell:
        return None
    try:
        for name in (cell, _ending_swapped(cell), cell.replace("\\", "/")):
            for ending in endings:
                if os.path.isfile(path := _below(images, name + ending)):  # noqa: PTH113
                    return Path(path)
        return _look_alike(images, cell.replace("\\", "/"), endings)
    except (ValueError, OSError):  # a NUL in the cell, a name longer than any file's
        return None


def _below(images: Path, name: str) -> str:
    """The path of a name in a folder; "" where it leads out of it."""
    root = images.absolute()
    # As text: `..` is taken away, while a link in the folder may lead where it likes.
    path = os.path.normpath(root / name)
    return path if path.startswith(os.path.normpath(root) + os.sep) else ""


def _ending_swapped(cell: str) -> str:
    stem, ending = os.path.splitext(cell)  # noqa: PTH122
    return stem + ending.swapcase()


def _look_alike(images: Path, name: str, endings: Iterable[str]) -> Path | None:
    """The file whose path looks the same, folder by folder."""
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
    """Names in a folder, by their plain form where that is another; `changed` is the folder's."""
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries)
        return {alike: name for name in names if (alike := plain(name)) != name}


def choose_image_column(table: Table, images: Path, asked: str | None) -> str:
    """The column asked for, or the one most of whose first cells name files below `images`.

    Raises:
        UserError: no such column, no column names files, or two name as many.
    """
    if asked is not None:
        table.column(asked)
        return asked
    # A column that names files outright is taken before one that lacks their ending.
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
    looked_at = list(islice((cell for cell in cells if cell), LOOKED_AT))
    found = [cell for cell in looked_at if find_picture(images, cell, endings)]
    return len(found) / max(1, len(looked_at))


def store(content: bytes, name: str, size: int) -> tuple[bytes, str]:
    """The picture to store, RGB and upright with a short side of at most `size` pixels.

    A JPEG, PNG or WebP that is so already is stored byte for byte; anything else is decoded,
    made smaller with its proportions kept, and encoded as JPEG without chroma subsampling, which
    would blur small coloured parts.

    Returns:
        The bytes, and their extension "jpg", "png" or "webp".

    Raises:
        UserError: the picture does not decode; see `adde.preprocess.decode`.
    """
    image = decode(content, name, size)
    with decoding(name):
        if (extension := _as_it_is(content, size)) is not None:
            return content, extension
        scale = size / min(image.size)
        if scale < 1:
            width, height = (round(side * scale) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return buffer.getvalue(), "jpg"


def _as_it_is(content: bytes, size: int) -> str | None:
    """The extension of a picture that needs nothing done; None of any other."""
    image: Image.Image = Image.open(io.BytesIO(content))
    plain = (
        image.mode == "RGB"
        and not image.has_transparency_data
        and min(image.size) <= size
        and orientation(image) == 1
        and getattr(image, "n_frames", 1) == 1
    )
    return EXTENSIONS.get(image.format or "") if plain else None
