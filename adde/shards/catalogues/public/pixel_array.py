"""Pictures of a data set as one plain array of pixels next to its files, mapped by workers.

The published files are compressed across pictures: reading one at random would unpack thousands.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from adde.errors import untrusted
from adde.files import atomic_path
from adde.shards.catalogues.catalogue import PictureSource
from adde.shards.catalogues.pictures import encode

BLOCK = 4096
"""Pictures unpacked at a time."""


@dataclass(frozen=True)
class Pixels(PictureSource):
    """One picture of the unpacked array."""

    array: Path
    row: int
    unpacked: int
    """Modification time of the array; part of the stamp."""
    size: int
    """Cap on the side of the picture."""

    def read(self) -> tuple[bytes, str]:
        """Return the picture as PNG."""
        with untrusted(f"{self.array}, row {self.row}", "the pixels of a picture"):
            pixels = _mapped(self.array)[self.row]
            if self.size < min(pixels.shape[:2]):
                scale = self.size / min(pixels.shape[:2])
                height, width = (round(side * scale) for side in pixels.shape[:2])
                small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
                pixels = np.asarray(small)
            if pixels.ndim == 2:
                pixels = np.stack([pixels] * 3, axis=2)
            return encode(Image.fromarray(pixels), "PNG")


@lru_cache(maxsize=1)
def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    return np.load(path, mmap_mode="r")


def unpacked(
    array: Path,
    files: Sequence[Path],
    shape: tuple[int, ...],
    blocks: Iterable[npt.NDArray[np.uint8]],
    size: int,
) -> Callable[[int], Pixels]:
    """Return the pictures of an array by row; write the array unless it is newer than `files`.

    Args:
        array: The .npy file.
        files: Where the pixels come from.
        shape: (N, height, width, 3) or (N, height, width) of all blocks together.
        blocks: Pixels in order; not read if the array is up to date.
        size: Cap on the side of a picture.
    """
    made = array.stat().st_mtime_ns if array.exists() else -1
    if made < max(path.stat().st_mtime_ns for path in files):
        with atomic_path(array) as temporary, temporary.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            bar = tqdm(desc=f"unpack {array.name}", total=shape[0], unit="picture", disable=None)
            with bar:
                for block in blocks:
                    file.write(np.ascontiguousarray(block).tobytes())
                    bar.update(len(block))
    made = array.stat().st_mtime_ns
    return lambda row: Pixels(array, row, made, size)


def blocks_of(pictures: Any) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield BLOCK pictures at a time from an array or an HDF5 data set."""
    return (pictures[start : start + BLOCK] for start in range(0, len(pictures), BLOCK))
