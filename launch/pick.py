"""Choose the file of launch/ for this machine and a recipe, and say why.

python launch/pick.py --recipe train/recipes/quickstart.toml
"""

from pathlib import Path

import tyro

from adde.errors import run_program
from adde.training.opening import count_parameters
from adde.training.recipes import read_recipe
from adde.training.resilience.topology import Machine, choose, command
from adde.training.run_folder import open_shards


def pick(recipe: Path, shards: str | None = None) -> None:
    """Print the file, the reasons, and the command.

    Args:
        recipe: of the run.
        shards: folder or address of shards; default: the recipe's.
    """
    config = read_recipe(recipe)
    index = open_shards(config, shards)
    machine = Machine.detect()
    choice = choose(machine, config, count_parameters(config, index.schema))
    print(f"launch/{choice.file}.yaml")
    for reason in choice.why:
        print(f"  {reason}")
    print(f"\n    {command(choice, machine, recipe)}")


if __name__ == "__main__":
    run_program(lambda: tyro.cli(pick))
