"""Write a bundle as a model repository for NVIDIA Triton.

python export/to_triton.py --bundle bundles/shop --out repositories/shop
python export/to_triton.py --bundle bundles/shop --out repositories/shop --kind cpu
tritonserver --model-repository repositories/shop
"""

from pathlib import Path

import tyro

from adde.bundle import Bundle
from adde.errors import run_program
from adde.exporting.triton import MODELS, Kind, write_repository


def export(
    bundle: Path,
    out: Path,
    kind: Kind = "gpu",
    delay_us: int = 2000,
    instances: int | None = None,
) -> None:
    """Write both graphs with their config.pbtxt.

    Args:
        bundle: folder of the bundle; its hashes are checked first.
        out: folder of the repository; an existing one is replaced.
        kind: where Triton runs them.
        delay_us: microseconds that a request waits for others to share its batch.
        instances: of each graph, per GPU; default: 2, or 1 on the CPU.
    """
    write_repository(Bundle.read(bundle), out, kind, delay_us, instances)
    print(f"{out}: {', '.join(MODELS)}")


if __name__ == "__main__":
    run_program(lambda: tyro.cli(export))
