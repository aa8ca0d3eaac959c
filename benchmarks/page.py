r"""Screenshots of the shopper's page for the docs: two sizes, light and dark.

The wardrobe's items have neither names nor prices, so the first command invents some:

    python benchmarks/page.py fields --shards data/wardrobe --out items.csv
    python serve_onnx/build_gallery.py --bundle bundles/quickstart --catalogue data/wardrobe \
        --out galleries/wardrobe --fields items.csv --id-column item_id
    python serve_onnx/server.py --bundle bundles/quickstart --gallery galleries/wardrobe \
        --currency EUR --link-template 'https://shop.example/p/{item_id}'
    python benchmarks/page.py pictures --item 001949-0 --edit headwear_colour=red

Needs chromium and Playwright (extra `dev`).
"""

import csv
import io
import random
from pathlib import Path
from urllib.parse import urlencode

import tyro
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from adde.shards.index import ShardIndex
from adde.shards.reader import iterate

SIZES = {"": (1280, 860), "-phone": (390, 844)}
PALETTE = {"colors": 256, "method": Image.Quantize.MEDIANCUT, "kmeans": 3}
"""A third of the bytes with imperceptible colour errors."""


BRANDS = ("Aster", "Bram", "Ivo", "Juno", "Lux", "Merrily", "Nell", "Otis", "Pip", "Wren")


def fields(shards: Path, out: Path) -> None:
    """Write a table of invented names, brands and prices.

    Args:
        shards: folder of the wardrobe's shards.
        out: the table, CSV.
    """
    index, draws = ShardIndex.read(shards), random.Random(0)
    with out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("item_id", "title", "brand", "price"))
        for split in ("train", "val", "test"):
            for sample in iterate(index, split):
                seen = index.schema.decode(sample.labels)
                worn = [seen[name] for name in ("outfit", "headwear")]
                what = " with ".join(each for each in worn if each and each != "none")
                brand, price = draws.choice(BRANDS), draws.randint(24, 160) / 2 - 0.05
                title = f"{brand} {what.replace('_', ' ')}".strip()
                table.writerow((sample.item_id, title, brand, f"{price:.2f}"))


def pictures(
    item: str,
    edit: tuple[str, ...],
    url: str = "http://127.0.0.1:8000",
    out: Path = Path("docs"),
    chromium: Path = Path("/usr/bin/chromium"),
) -> None:
    """Write page.png, page-start.png and their variants.

    Args:
        item: start of the search.
        edit: requested changes, attribute=value.
        url: of a running server.
        out: folder of the pictures.
        chromium: the browser.
    """
    edits = {f"but.{name}": value for name, value in (each.split("=", 1) for each in edit)}
    paths = {"page": f"/?{urlencode({'item': item, **edits})}", "page-start": "/"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(chromium), args=["--no-sandbox", "--hide-scrollbars"]
        )
        for name, path in paths.items():
            for size, (width, height) in SIZES.items():
                for scheme in ("light", "dark"):
                    dark = "-dark" if scheme == "dark" else ""
                    content = shot(browser, url + path, width, height, scheme)
                    picture = Image.open(io.BytesIO(content)).convert("RGB")
                    picture.quantize(**PALETTE).save(out / f"{name}{size}{dark}.png", optimize=True)
        browser.close()


def shot(browser: Browser, url: str, width: int, height: int, scheme: str) -> bytes:
    """Take a screenshot (PNG) of the page in a window of the given size."""
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        locale="en-GB",
    )
    page.goto(url)
    page.wait_for_selector(".card")
    page.wait_for_load_state("networkidle")
    content = page.screenshot()
    page.close()
    return content


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"fields": fields, "pictures": pictures})
