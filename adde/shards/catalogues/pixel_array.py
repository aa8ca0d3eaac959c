"""Pictures of a data set as one plain array of pixels beside its files, which workers map.

Files of such sets are compressed across pictures, so that reading one at random unpacks thousands.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from adde.errors import untrusted
from adde.files import atomic_path
from adde.shards.catalogues.grids import as_png

BLOCK = 4096
"""Pictures that are unpacked at a time."""


@dataclass(frozen=True)
class Pixels:
    """One picture of the unpacked array."""

    array: Path
    row: int
    unpacked: int
    """Time of change of the array."""
    size: int
    """Cap on the side of the picture."""

    def read(self) -> tuple[bytes, str]:
        """The picture as PNG."""
        with untrusted(f"{self.array}, row {self.row}", "the pixels of a picture"):
            pixels = _mapped(self.array)[self.row]
            if self.size < min(pixels.shape[:2]):
                scale = self.size / min(pixels.shape[:2])
                height, width = (round(side * scale) for side in pixels.shape[:2])
                small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
                pixels = np.asarray(small)
            return as_png(pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=2))

    def stamp(self) -> str:
        """Which array, and when it was written."""
        return repr(self)


@dataclass(frozen=True)
class PixelRows:
    """The pictures of the unpacked array."""

    array: Path
    unpacked: int
    size: int

    def __call__(self, row: int) -> Pixels:
        """The picture of a row."""
        return Pixels(self.array, row, self.unpacked, self.size)


@lru_cache(maxsize=1)
def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    return np.load(path, mmap_mode="r")


def unpacked(
    array: Path,
    files: Sequence[Path],
    shape: tuple[int, ...],
    blocks: Iterable[npt.NDArray[np.uint8]],
    size: int,
) -> PixelRows:
    """The pictures of an array, which is written unless it is there and newer than `files`.

    Args:
        array: the .npy file.
        files: that the pixels come from.
        shape: (N, height, width, 3) or (N, height, width) of all blocks together.
        blocks: pixels in order; they are not looked at where the array is there.
        size: cap on the side of a picture.
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
    return PixelRows(array, array.stat().st_mtime_ns, size)
