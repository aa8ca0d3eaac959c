"""Search settings with Optuna, offline, in the space of a W&B sweep file.

    python train/search.py --sweep train/sweeps/quickstart.yaml --trials 20
    wandb sweep train/sweeps/quickstart.yaml       # the same with W&B and its agents

An interrupted search resumes. Worse trials end early. The folder contains history.png,
settings.png, best.json, and each trial's run.
"""

from pathlib import Path

import tyro

from adde.errors import run_program
from adde.files import read_text
from adde.training.sweep import read_sweep
from adde.training.trials import Search


def search(sweep: Path, out: Path | None = None, trials: int = 20, seed: int = 0) -> None:
    """Run trials one after the other, and print the best.

    Args:
        sweep: the sweep file.
        out: folder of the trials; default: runs/<name of the sweep>.
        trials: number of trials, including those of earlier calls.
        seed: of the sampler.
    """
    read = read_sweep(sweep)
    found = Search(read, out or Path("runs") / read.name, seed)
    found.run(trials)
    print(read_text(found.folder / "best.json"))
    print(f"plots: {found.folder / 'history.png'}, {found.folder / 'settings.png'}")


if __name__ == "__main__":
    run_program(lambda: tyro.cli(search))
