"""A small shop: a table and its pictures."""

import csv

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def shop(tmp_path):
    """Write a CSV of the given rows, and a noise JPEG for each name in their column `image`."""

    def make(rows, side=24):
        images = tmp_path / "images"
        images.mkdir(exist_ok=True)
        for number, row in enumerate(rows):
            noise = np.random.default_rng(number).integers(0, 256, (side + 8, side, 3))
            Image.fromarray(noise.astype(np.uint8)).save(images / row["image"], quality=90)
        table = tmp_path / "items.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        return table, images

    return make


@pytest.fixture
def rows():
    """60 rows: 3 colours, 2 sleeves (some missing), distinct prices, 12 families."""
    return [
        {
            "image": f"{number:02d}.jpg",
            "sleeve": ("short", "long", "")[number % 3],
            "colour": ("red", "green", "blue")[number // 3 % 3],
            "price": f"{number * 1.5 + 9.99:.2f}",
            "family": f"f{number // 5}",
        }
        for number in range(60)
    ]
