"""Check bundles (hashes, schema, opset, dimensions, golden vectors) and measure their speed.

python export/check.py --bundle bundles/quickstart
python export/check.py --bundle bundles/shop bundles/shop-fp16 bundles/shop-int8

The table has a row for every precision, device available to onnxruntime, and batch size. If a
device other than the CPU fails, its row has the reason, the others continue, and the exit status is
1.
"""

from pathlib import Path

import tyro

from adde.bundle import Bundle
from adde.errors import UserError, run_program
from adde.exporting.check import check_bundle
from adde.serving.onnx.providers import PROVIDERS, Device, missing


def check(bundle: list[Path]) -> None:
    """Print a summary of each bundle and the table; stop with the reason if a check fails.

    Args:
        bundle: folders of bundles.
    """
    checked = [check_bundle(path, _devices(path)) for path in bundle]
    for found, _ in checked:
        details = found.details
        print(
            f"{found.path}: whole; {len(found.schema.sizes)} attributes x {found.width}, "
            f"{found.schema.num_values} values, {found.preprocess.size} px, "
            f"{details['precision']} ({details['parts']}), memory {details['memory']}, "
            f"opset {details['opset']}, schema {found.schema.hash[:12]}"
        )
    print(
        f"{'precision':>10}{'device':>10}{'batch':>6}{'max error':>12}{'encoder ms':>12}"
        f"{'memory ms':>12}{'pictures/s':>12}"
    )
    for found, rows in checked:
        for row in rows:
            if "failure" in row:
                print(f"{found.details['precision']:>10}{row['device']:>10}  {row['failure']}")
                continue
            speed = 1000 * row["batch"] / row["encoder_ms"]
            print(
                f"{found.details['precision']:>10}{row['device']:>10}{row['batch']:6.0f}"
                f"{row['max_error']:12.1e}{row['encoder_ms']:12.2f}{row['memory_ms']:12.3f}"
                f"{speed:12.0f}"
            )
    failed = [(found, row) for found, rows in checked for row in rows if "failure" in row]
    if failed:
        where = ", ".join(f"{found.path} on {row['device']}" for found, row in failed)
        raise UserError(f"expected figures in every row, found none for {where}; the rows say why")


def _devices(path: Path) -> list[Device]:
    precision = Bundle.read(path).details["precision"]
    return [device for device in PROVIDERS if not missing(device, precision)]


if __name__ == "__main__":
    run_program(lambda: tyro.cli(check))
