"""With sharded weights a device holds a full copy only during an evaluation, and only one."""

import pytest
from test_strategies import launch
from tiny_recipe import RECIPE

PROGRAM = """
import runpy, weakref
import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from adde.errors import run_program
from adde.methods.adde.model import ADDE
from adde.training.evaluation import Evaluator
from adde.training.strategies import Strategy, weights

# Another name of the CPU, to tell moves to the device from moves back.
DEVICE = torch.device("cpu", 0)
there, states, opening = [], [], False
opened, begun, encoded = weights.open_strategy, Strategy.begin_step, Evaluator.encode

def whole(model):
    return any(p.numel() and not isinstance(p, DTensor) for p in model.parameters())

def to(model, *where, **how):
    device = torch._C._nn._parse_to(*where, **how)[0]
    if device is not None:
        there[:] = [other for other in there if other is not model]
        if whole(model) and (opening or device.index == 0):
            assert not opening, "moved as a whole before sharding"
            there.append(model)
        assert len(there) <= 1, "two whole copies"
    return torch.nn.Module.to(model, *where, **how)

def open_strategy(*arguments):
    global opening
    assert not there, "a whole copy at a stage's start"
    assert all(state() is None for state in states), "the optimiser of the stage before"
    opening = True
    strategy = opened(*arguments)
    opening = False
    return strategy

def begin_step(strategy, rate):
    assert not there, "a whole copy beside training"
    states.extend(weakref.ref(s["momentum_buffer"]) for s in strategy._optimizer.state.values())
    begun(strategy, rate)

def encode(evaluator, represent, model, split):
    assert there == [model]
    print("evaluated", flush=True)
    return encoded(evaluator, represent, model, split)

Accelerator.device = property(lambda self: DEVICE)
ADDE.to, weights.open_strategy = to, open_strategy
Strategy.begin_step, Evaluator.encode = begin_step, encode
program = runpy.run_path("train/main.py")
run_program(program["main"])
assert states
"""


@pytest.mark.parametrize(
    "file",
    ["fsdp2", *(pytest.param(f, marks=pytest.mark.slow) for f in ("zero3", "zero3_offload"))],
)
def test_a_whole_copy_is_on_the_device_for_evaluations_alone(file, tiny_shards, tmp_path):
    program, recipe = tmp_path / "main.py", tmp_path / "recipe.toml"
    program.write_text(PROGRAM)
    text = RECIPE.replace("[data]", f'[data]\nshards = "{tiny_shards}"')
    recipe.write_text(text.replace("epochs = 2\nlearning", "epochs = 0.3\nlearning"))
    output = launch(file, 2, recipe, tmp_path / "run", program=program)
    # At the end of both stages, between them, and for calibration.
    assert output.count("evaluated") == 2 * 4
