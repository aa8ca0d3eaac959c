"""Searches settings with Optuna, offline, over the space of a W&B sweep file.

    python train/search.py --sweep train/sweeps/quickstart.yaml --trials 20
    wandb sweep train/sweeps/quickstart.yaml       # the same, through W&B and its agents

Called again, it goes on where it was cut off. Trials whose validation figures are among the worse
are ended early. Results lie in the folder: history.png, settings.png, best.json, and each trial's
run.
"""

from pathlib import Path

import tyro

from adde.errors import run_program
from adde.files import read_text
from adde.training.trials import Search, read_sweep


def search(sweep: Path, out: Path | None = None, trials: int = 20, seed: int = 0) -> None:
    """Runs trials one after the other and prints the best.

    Args:
        sweep: the file.
        out: folder of the trials; default: runs/<name of the sweep>.
        trials: that are to have ended in all.
        seed: of the sampler.
    """
    read = read_sweep(sweep)
    found = Search(read, out or Path("runs") / read.name, seed)
    found.run(trials)
    print(read_text(found.folder / "best.json"))
    print(f"plots: {found.folder / 'history.png'}, {found.folder / 'settings.png'}")


if __name__ == "__main__":
    run_program(lambda: tyro.cli(search))
