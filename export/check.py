"""Checks a bundle: hashes, schema, opset, dimensions, golden vectors; and how fast it is here.

python export/check.py --bundle bundles/quickstart
"""

from pathlib import Path

import tyro

from adde.errors import run_program
from adde.exporting.check import check_bundle


def check(bundle: Path) -> None:
    """Prints a row per batch size; stops with the cause where something is wrong.

    Args:
        bundle: folder of the bundle.
    """
    found, rows = check_bundle(bundle)
    attributes, values = len(found.schema.sizes), found.schema.num_values
    print(
        f"{bundle}: whole; {attributes} attributes x {found.width}, {values} values, "
        f"{found.preprocess.size} px, {found.details['precision']}, "
        f"opset {found.details['opset']}, schema {found.schema.hash[:12]}"
    )
    print(f"{'batch':>6}{'max error':>12}{'encoder ms':>12}{'memory ms':>12}{'pictures/s':>12}")
    for row in rows:
        speed = 1000 * row["batch"] / row["encoder_ms"]
        print(
            f"{row['batch']:6.0f}{row['max_error']:12.1e}{row['encoder_ms']:12.2f}"
            f"{row['memory_ms']:12.3f}{speed:12.0f}"
        )


if __name__ == "__main__":
    run_program(lambda: tyro.cli(check))
