"""Run every command of docs/public_data.md on tiny trees, with a small backbone and few epochs."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from trees import write_asen, write_polyvore, write_zappos

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "docs" / "public_data.md").read_text().splitlines()
COMMANDS = [
    line.strip() for line in LINES if line.startswith(("    python ", "    accelerate launch "))
]
SMALLER = ["--model.backbone", "test_resnet", "--model.image-size", "32"]
COMMON = ["--wandb", "off", "--data.batch-size", "16"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that the commands name."""
    place = tmp_path_factory.mktemp("place")
    kinds = ("Boots", "Shoes")
    triplets = {
        ("class", split): [(a, a + 1, a + 2) for a in range(start, start + 15, 3)]
        for split, start in (("train", 0), ("val", 30), ("test", 45))
    }
    items = [(kinds[n % 2], "Buckle", ("Men", "Women")[n // 2 % 2], "Flat") for n in range(60)]
    write_zappos(place / "zappos", items, triplets)
    pictures = {"train": 20, "valid": 10, "test": 10}
    asked = {
        (kind, name): [f"{n} 0 {n % 2}" for n in rows]
        for name in ("valid", "test")
        for kind, rows in (("query", range(4)), ("candidate", range(4, 10)))
    }
    labels = [f"{n} 0 {n % 2}" for n in range(20)]
    write_asen(place / "FashionAI-asen", {"sleeve": ["Short", "Long"]}, pictures, labels, asked)
    categories = {
        f"{n}": (("tops", "shoes", "bags")[n % 3], str(n % 3), f"fine {n % 3}") for n in range(90)
    }
    sets = {
        name: {f"{name}{o}": [f"{start + 3 * o + c}" for c in range(3)] for o in range(count)}
        for name, start, count in (("train", 0, 18), ("valid", 54, 6), ("test", 72, 6))
    }
    questions = {
        name: [
            ([f"{name}{o}_2", f"{name}{o}_3"], [f"{name}{(o + k) % 6}_1" for k in range(4)])
            for o in range(6)
        ]
        for name in ("valid", "test")
    }
    judged = {
        name: [
            f"{int(fits)} {name}{o}_1 {name}{(o + 1 - fits) % 6}_2"
            for o in range(6)
            for fits in (1, 0)
        ]
        for name in ("valid", "test")
    }
    write_polyvore(
        place / "polyvore_outfits", "disjoint", sets, categories, questions["test"],
        judged["test"], valid_blanks=questions["valid"], valid_judged=judged["valid"],
    )  # fmt: skip
    return place


@pytest.mark.slow
def test_the_commands_of_the_page_run(place):
    assert len(COMMANDS) == 10
    for command in COMMANDS:
        words = shlex.split(command.removeprefix("accelerate launch "))
        words = words[1:] if words[0] == "python" else words
        if words[0] == "train/main.py":
            recipe = words.index("--recipe") + 1
            head = words[recipe].endswith("/outfits.toml")
            words[recipe] = str(ROOT / words[recipe])
            schedule = "--schedule.epochs" if head else "--encoder.schedule.epochs"
            words += [*COMMON, *([] if head else SMALLER), schedule, "1"]
        words[0] = str(ROOT / words[0])
        done = subprocess.run(
            [sys.executable, *words], cwd=place, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    zappos = json.loads((place / "runs" / "zappos" / "similarity-test.json").read_text())
    assert "triplets" in zappos
    outfits = json.loads((place / "runs" / "polyvore-outfits" / "outfits-test.json").read_text())
    assert outfits["questions"] == {"fitb": 6, "auc": 6, "recall": 6}
