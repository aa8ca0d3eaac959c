r"""Count and hash shards, compare them with their index.json, and name each difference.

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
    """Count and hash shards, compare them with their index.json, and name each difference.

    Args:
        shards: Folder of shards.
        decode: Also decode every picture.
        workers: Number of processes; one per core if not given.
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
        f"as listed in the index{', all pictures decode' if decode else ''}"
    )


if __name__ == "__main__":
    run_program(lambda: tyro.cli(main))
