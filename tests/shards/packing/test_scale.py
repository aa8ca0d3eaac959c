"""Pack a million rows within 1 GB."""

import json
import subprocess
import sys

import pytest

ROWS = 1_000_000

# The whole building process without the tars. Workers write these and hold one picture at a time;
# here their results are made up.
BUILD = """
import json, sys
from pathlib import Path

from adde.shards.catalogues.importers import open_catalogue
from adde.shards.shard import Shard, member_rows
from adde.shards.packing.pack import PackOptions, pack
from adde.shards.catalogues.tables.tabular import TableOptions
from adde.shards.packing.tar import Packed

root = Path(sys.argv[1])

def workers(work, jobs):
    for job in jobs:
        count = len(job.records)
        assert len(job.sources) == count == sum(job.groups)
        members = [
            [2048 * n + 512, 300 + n % 99, 2048 * n + 1536, 200 + n, 2**32 - n - 1]
            for n in range(count)
        ]
        digests = "".join(f"{job.first + n:032x}" for n in range(count))
        rows = member_rows(job.groups, members)
        shard = Shard(job.name, job.split, count, 2048 * count, "0" * 64, rows)
        yield Packed(shard, list(range(count)), [], digests)

catalogue = open_catalogue(str(root / "items.csv"), root / "p", TableOptions(id_column="id"))
summary = pack(catalogue, root / "out", PackOptions(), workers)
# getrusage would include the peak of the parent process.
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({
    "items": sum(summary["items"].values()),
    "megabytes": int(peak.split()[1]) * 1024 / 1e6,
}))
"""


def write_catalogue(root, rows):
    """Six attributes of 10 to 19 values, nearly all combinations different: the worst case."""
    import numpy as np
    from PIL import Image

    (root / "p").mkdir()
    rng = np.random.default_rng(0)
    for number in range(100):
        noise = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(noise).save(root / "p" / f"{number:03d}.png")
    columns = [rng.integers(0, values, rows).tolist() for values in (16, 17, 19, 14, 10, 15)]
    with (root / "items.csv").open("w") as file:
        file.write("id,image,category,collar,colour,fabric,fastening,fit,price\n")
        for row, labels in enumerate(zip(*columns)):
            cells = ",".join(f"value {label}" if label else "" for label in labels)
            file.write(f"item-{row:09d},{row % 100:03d}.png,{cells},{row / 7:.4f}\n")


@pytest.mark.slow
def test_a_million_rows_in_a_gigabyte(tmp_path):
    write_catalogue(tmp_path, ROWS)
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert figures["items"] == ROWS
    assert figures["megabytes"] < 1000
