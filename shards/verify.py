r"""Recounts and rehashes shards against their index.json, and names each difference.

python shards/verify.py --shards data/shop
python shards/verify.py --shards data/shop --decode
"""

from pathlib import Path

import tyro
from tqdm import tqdm

from adde.errors import UserError, run_program
from adde.shards.checking.verify import verify
from adde.shards.index import ShardIndex


def main(shards: Path, decode: bool = False, workers: int | None = None) -> None:
    """Recounts and rehashes shards against their index.json, and names each difference.

    Args:
        shards: folder of shards.
        decode: decode every picture too.
        workers: processes; one per core if not given.
    """
    index = ShardIndex.read(shards, check_files=False)
    differences = 0
    for difference in verify(index, decode, workers):
        tqdm.write(difference)
        differences += 1
    if differences:
        raise UserError(f"{shards}: {differences} differences from its index; build it again")
    samples = sum(shard.samples for shard in index.shards)
    megabytes = sum(shard.bytes for shard in index.shards) / 1e6
    print(
        f"{shards}: {samples:,} samples in {len(index.shards)} shards, {megabytes:.1f} MB, "
        f"all as in its index{', all pictures decode' if decode else ''}"
    )


if __name__ == "__main__":
    run_program(lambda: tyro.cli(main))
