"""Sweep files, compared with W&B's agent, and searches."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from adde.errors import UserError
from adde.training.recipes import parse
from adde.training.sweep import Sweep, read_sweep
from adde.training.trials import Search

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "train" / "sweeps").glob("*.yaml"))

TRIAL = """
import json, sys, time
from pathlib import Path
words = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
assert "--resume" in sys.argv
run, margin = Path(words["run"]), float(words["margin"])
if margin > 1:
    sys.exit("too wide")
with (run / "log.jsonl").open("a") as log:
    for step in range(1, 4):
        time.sleep({pause} if margin < {slow} else 0)
        print(json.dumps({{"step": step, "val/hit@30": margin * step}}), file=log, flush=True)
"""


def sweep(tmp_path, pause=0.0, slow=0.0, **changes):
    """A sweep over the margin, of which the largest is the best, with a fast program."""
    program = tmp_path / "trial.py"
    program.write_text(TRIAL.format(pause=pause, slow=slow))
    content = {
        "name": "margins",
        "method": "random",
        "metric": {"name": "val/hit@30", "goal": "maximize"},
        "parameters": {"margin": {"distribution": "uniform", "min": 0.1, "max": 0.9}},
        "command": [sys.executable, str(program), "${args}"],
    }
    return Sweep.model_validate({**content, **changes})


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_sweep_file_is_of_the_recipes_settings_and_starts_the_program(path):
    found = read_sweep(path)
    values = {name: p.samples[0] for name, p in found.parameters.items()}
    words = found.words(values)
    # Run it by bash with an `accelerate` that only prints its arguments.
    line = words[2].replace("exec accelerate", "printf '%s\\n'")
    done = subprocess.run(
        [*words[:2], line, *words[3:]],
        env={"WANDB_RUN_ID": "r1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    started = done.stdout.splitlines()
    assert started[0] == "launch" and (ROOT / started[2]).exists()
    _, config, _ = parse(started[started.index(found.program) + 1 :])
    assert config.run.name == "r1"
    settings = config.to_json()
    for name, value in values.items():
        place = settings
        for part in name.replace("-", "_").split("."):
            place = place[part]
        assert place == value


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_wandbs_agent_makes_the_same_words(path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    found = read_sweep(path)
    values = {name: p.samples[-1] for name, p in found.parameters.items()}
    flags = create_sweep_command_args({"args": {n: {"value": v} for n, v in values.items()}})
    words = []
    for word in create_sweep_command(yaml.safe_load(path.read_text())["command"]):
        words += flags["args"] if word == "${args}" else [word]
    assert words == found.words(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": {"margn": {"value": 0.2}}}, "parameters.margn: expected a setting"),
        ({"parameters": {"margin": {"values": ["wide"]}}}, "parameters.margin: .* found 'wide'"),
        ({"parameters": {"margin": {"min": 0.1}}}, "parameters.margin: .* one of value, values"),
        ({"command": ["echo"]}, r"command: expected \$\{args\} among its words"),
        ({"methods": "bayes"}, "methods: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_sweep_file_is_refused_by_name(change, message, tmp_path, capsys):
    content = sweep(tmp_path).model_dump(exclude_none=True, exclude_defaults=True)
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps({**content, **change}))))
    with pytest.raises(UserError, match=message):
        read_sweep(path)


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_finds_the_best_and_goes_on(method, tmp_path):
    out = tmp_path / "out"
    Search(sweep(tmp_path, method=method), out).run(2)
    search = Search(sweep(tmp_path, method=method), out)
    assert len(search.ended()) == 2
    search.run(3)
    values = [t.value for t in search.ended()]
    margins = [t.params["margin"] for t in search.ended()]
    assert values == pytest.approx([3 * margin for margin in margins])
    assert len(set(margins)) == 3  # no repetition
    best = json.loads((out / "best.json").read_text())
    assert best["val/hit@30"] == max(values)
    assert best["settings"]["margin"] == max(margins)
    for name in ("history.png", "settings.png"):
        assert (out / name).stat().st_size > 5000
    assert {p.name for p in out.glob("trial-*")} == {f"trial-{k:04d}" for k in range(3)}


def test_a_grid_ends_with_its_places(tmp_path):
    parameters = {"margin": {"values": [0.2, 0.4]}, "seed": {"value": 3}}
    search = Search(sweep(tmp_path, method="grid", parameters=parameters), tmp_path / "out")
    search.run(20)
    assert sorted(t.params["margin"] for t in search.ended()) == [0.2, 0.4]


def test_a_trial_among_the_worse_is_ended(tmp_path):
    # The second would take a minute for each evaluation after its first.
    early = {"type": "hyperband", "min_iter": 1, "eta": 2}
    parameters = {"margin": {"values": [0.8, 0.1]}}
    search = Search(
        sweep(tmp_path, 0.3, 0.5, early_terminate=early, parameters=parameters), tmp_path / "out"
    )
    for margin in (0.8, 0.8, 0.1):
        search.study.enqueue_trial({"margin": margin})
    search.run(3)
    assert [t.state.name for t in search.ended()] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert len((tmp_path / "out/trial-0002/log.jsonl").read_text().splitlines()) < 3


def test_a_trial_that_was_cut_off_is_begun_again_in_its_folder(tmp_path):
    search = Search(sweep(tmp_path), tmp_path / "out")
    trial = search.study.ask({"margin": search._optuna.distributions.FloatDistribution(0.1, 0.9)})
    again = Search(sweep(tmp_path), tmp_path / "out")
    again.run(1)
    (ended,) = again.ended()
    assert ended.params == trial.params
    assert [p.name for p in (tmp_path / "out").glob("trial-*")] == ["trial-0000"]


def drawn(search, *margins):
    """Return the search, with these margins for the next trials."""
    for margin in margins:
        search.study.enqueue_trial({"margin": margin})
    return search


def test_a_trial_that_fails_is_told_and_left_behind(tmp_path, capsys):
    parameters = {"margin": {"values": [0.2, 0.4, 2.0]}}
    search = Search(sweep(tmp_path, parameters=parameters), tmp_path / "out")
    drawn(search, 0.2, 2.0, 2.0, 0.4, 2.0, 2.0, 0.2).run(3)  # never three in a row
    told = capsys.readouterr().out
    for number in (1, 2, 4, 5):
        name = f"trial-{number:04d}"
        assert f"{name}: expected a run that logs val/hit@30, found exit status 1" in told
        assert "too wide" in (tmp_path / "out" / name / "output.txt").read_text()
    states = [trial.state.name for trial in search.study.trials]
    assert states == [*["COMPLETE", "FAIL", "FAIL"] * 2, "COMPLETE"]
    best = json.loads((tmp_path / "out/best.json").read_text())
    assert best["settings"]["margin"] == 0.4


def test_three_failures_in_a_row_end_the_search(tmp_path):
    parameters = {"margin": {"values": [0.2, 2.0]}}
    search = Search(sweep(tmp_path, parameters=parameters), tmp_path / "out")
    with pytest.raises(UserError, match=r"trial-0003: .* exit status 1 .*; see .*output\.txt"):
        drawn(search, 0.2, 2.0, 2.0, 2.0, 0.2).run(2)
    search.run(2)  # the queued one
    assert len(search.ended()) == 2


def test_a_search_whose_first_trial_fails_ends_with_its_output(tmp_path):
    search = Search(sweep(tmp_path, parameters={"margin": {"value": 2.0}}), tmp_path / "out")
    with pytest.raises(UserError, match=r"trial-0000: .* exit status 1 .*; see .*output\.txt"):
        search.run(1)
    assert "too wide" in (tmp_path / "out/trial-0000/output.txt").read_text()


def test_a_place_of_a_grid_that_fails_is_not_tried_again(tmp_path):
    parameters = {"margin": {"values": [0.2, 0.4, 2.0]}}
    content = sweep(tmp_path, method="grid", parameters=parameters)
    with contextlib.suppress(UserError):  # if the sampler begins with that point
        Search(content, tmp_path / "out").run(20)
    Search(content, tmp_path / "out").run(20)
    again = Search(content, tmp_path / "out")
    again.run(20)
    assert sorted(t.params["margin"] for t in again.ended()) == [0.2, 0.4]
    assert [t.params["margin"] for t in again.failed()] == [2.0]
