r"""Report problems of a catalogue: labels, balance, near-duplicates, broken pictures, edit targets.

python shards/doctor.py --shards data/shop
python shards/doctor.py --shards data/shop --out report.html
"""

from pathlib import Path

import tyro

from adde.errors import UserError, run_program
from adde.files import require_writable
from adde.shards.checking.doctor import as_text, diagnose, scan
from adde.shards.index import ShardIndex


def main(shards: Path, out: Path | None = None, workers: int | None = None) -> None:
    """Report problems of a catalogue, read from its shards.

    Args:
        shards: Folder of shards.
        out: Also write the report as a page with pictures.
        workers: Number of processes; one per core if not given.
    """
    if out is not None:
        if out.is_dir():
            raise UserError(f"{out}: expected a page's name such as report.html, found a folder")
        require_writable(out)  # before the pictures are scanned
    index = ShardIndex.read(shards)
    scanned = scan(index, workers)
    found = diagnose(index, scanned)
    print(as_text(found, scanned.item_ids))
    if out is not None:
        # Imported here, because the text needs no templates.
        from adde.shards.checking.doctor_page import write_page

        write_page(index, found, scanned, out)
        print(f"\nwritten: {out}")


if __name__ == "__main__":
    run_program(lambda: tyro.cli(main))
