"""Draw items of an embedded catalogue again with other labels: the true picture of an edit."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from adde.schema import Labels
from adde.shards.catalogues.drawn import rooms, wardrobe

Picture = npt.NDArray[np.uint8]


def redraw(
    name: str, item_ids: Sequence[str], labels: Labels, size: int, seed: int = 0
) -> list[Picture | None] | None:
    """Draw n items with new labels; everything that no label describes stays as it is.

    Args:
        name: of the catalogue.
        item_ids: n of its items, each as often as it is drawn.
        labels: (n, A) int64.
        size: side of a picture in pixels.
        seed: that the catalogue was built with.

    Returns:
        Pictures (size, size, 3), None where no item can look like the labels, such as a figure with
        a colour of a garment that its outfit hides; None for a catalogue that cannot be drawn.
    """
    if name == "rooms":
        return [*rooms.render(labels, size)]
    if name == "wardrobe":
        return wardrobe.redraw(item_ids, labels, size, seed)
    return None
