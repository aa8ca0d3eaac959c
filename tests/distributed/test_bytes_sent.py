"""Compare the bytes per step of ZeRO in docs/scaling.md with those of the collectives."""

import json
import re
from pathlib import Path

import pytest
from test_strategies import launch
from tiny_recipe import RECIPE

PROGRAM = '''
"""train/main.py that prints the bytes rank 0 sends on a ring per step."""
import json, runpy
import torch.distributed as dist
from adde.errors import run_program
from adde.training.strategies import Strategy

sent = 0

def count(name, times, place):
    """Count the bytes of a collective, whose full tensor is the argument at `place`."""
    plain = getattr(dist, name)
    def counted(*values, **named):
        global sent
        whole = values[place] if len(values) > place else list(named.values())[place]
        sent += times * whole.nbytes
        return plain(*values, **named)
    setattr(dist, name, counted)

count("all_reduce", 2, 0)  # a reduce-scatter, then an all-gather
count("reduce", 1, 0)
count("all_gather_into_tensor", 1, 0)
count("reduce_scatter_tensor", 1, 1)
if hasattr(dist, "all_gather_single"):  # torch 2.14's names
    count("all_gather_single", 1, 0)
    count("reduce_scatter_single", 1, 1)
begin, before = Strategy.begin_step, None

def begin_step(self, rate):
    global before
    if before is not None and dist.get_rank() == 0:
        weights = sum(p.numel() for p in self._module.parameters() if p.requires_grad)
        print(json.dumps(["sent", sent - before, weights]), flush=True)
    begin(self, rate)
    before = sent

Strategy.begin_step = begin_step
program = runpy.run_path("train/main.py")
run_program(program["main"])
'''


@pytest.mark.slow
@pytest.mark.parametrize("file", ["zero1", "zero2"])
def test_zero_sends_what_the_docs_say(file, tiny_shards, tmp_path):
    # DeepSpeed's setting `use_multi_rank_bucket_allreduce = false` would send 8 bytes per weight,
    # in as many successive collectives as there are ranks.
    docs = (Path(__file__).parents[2] / "docs/scaling.md").read_text()
    documented = re.search(rf"^\| `{file}` \|.*\| (\d+)[^|]*\|$", docs, re.MULTILINE)
    assert documented is not None
    program, recipe = tmp_path / "main.py", tmp_path / "recipe.toml"
    program.write_text(PROGRAM)
    recipe.write_text(RECIPE.replace("[data]", f'[data]\nshards = "{tiny_shards}"'))
    short = ("--encoder.schedule.epochs=1", "--adde.schedule.epochs=0.2")
    output = launch(file, 2, recipe, tmp_path / "run", *short, program=program)
    steps = [json.loads(line)[1:] for line in output.splitlines() if line.startswith('["sent"')]
    assert len(steps) > 3
    found = min(sent / weights for sent, weights in steps)  # other steps include an evaluation
    # The tolerance covers embeddings, statistics and scalars.
    assert found == pytest.approx(int(documented[1]), rel=0.05)
