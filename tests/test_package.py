"""What `pip install` gives: the version, the commands, and a wheel that works by itself."""

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import adde
from adde.serving import Searcher

ROOT = Path(__file__).parents[1]


def test_the_version_is_that_of_the_project_and_costs_no_import():
    (declared,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert adde.__version__ == declared
    asked = "import sys, adde; assert 'importlib.metadata' not in sys.modules"
    # -S: site itself imports it where packages are installed as editable.
    subprocess.run([sys.executable, "-S", "-c", asked], cwd=ROOT, check=True)
    with pytest.raises(AttributeError, match="__verison__"):
        adde.__verison__  # noqa: B018


def test_the_changelog_dates_this_version():
    newest = re.search(r"^## (\S+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None
    assert newest[1] == adde.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", newest[2])


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    dated = re.search(r"^## (\S+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert dated is not None
    assert (citation["version"], citation["date-released"]) == dated.groups()


def test_hosted_ci_runs_what_ci_runs():
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["steps"]
    assert steps[-1]["run"] == (ROOT / ".ci" / "run").read_text().splitlines()[-1]


def test_constraints_are_versions_that_the_project_allows():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {}
    for line in filter(lambda line: not line.startswith("#"), lines):
        name, version = re.fullmatch(r"([\w.-]+)==([\w.+!]+)", line).groups()  # and nothing else
        pinned[canonicalize_name(name)] = version
    wanted = [Requirement(text) for text in requires("adde") or ()]
    refused = [
        str(want)
        for want in wanted
        if (version := pinned.get(canonicalize_name(want.name)))
        and not want.specifier.contains(version)
    ]
    assert not refused
    assert {"numpy", "onnxruntime-gpu", "torch", "fastapi"} <= set(pinned)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin folder of an environment that holds the wheel and its dependencies alone."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", wheel)
    return folder / "bin"


def run(*words, **options):
    environment = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, env=environment, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_is_one_that_an_index_takes(wheel):
    run(sys.executable, "-m", "twine", "check", "--strict", *wheel.parent.iterdir())
    names = zipfile.ZipFile(wheel).namelist()
    assert {"adde/py.typed", "adde/serving/http/page/index.html"} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"adde"}


@pytest.mark.slow
def test_the_wheel_answers_in_a_clean_environment(installed, tiny_bundle, tiny_shards, tmp_path):
    given = ("--bundle", tiny_bundle, "--gallery", tmp_path / "gallery")
    run(
        *(installed / "adde-gallery", "--bundle", tiny_bundle),
        *("--catalogue", tiny_shards, "--out", tmp_path / "gallery"),
        cwd=tmp_path,
    )
    asked = ("--item", "test-000000-003", "--set", "colour=red", "--k", "5", "--json")
    answer = json.loads(run(installed / "adde-query", *given, *asked, cwd=tmp_path))
    assert answer["edits"] == {"colour": "red"}
    here = Searcher(tiny_bundle, tmp_path / "gallery").search(
        item="test-000000-003", edits={"colour": "red"}, k=5
    )
    assert [one["item_id"] for one in answer["answers"]] == [one.item_id for one in here]
    # The base install has no HTTP service; the command says which extra has.
    server = subprocess.run(
        [installed / "adde-server", *map(str, given)], capture_output=True, text=True, cwd=tmp_path
    )
    assert server.returncode == 1
    assert "pip install 'adde[serve]'" in server.stderr
