"""The tutorial as a notebook: it is the page's, and it runs."""

import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKER = runpy.run_path(str(ROOT / "tools" / "notebook.py"))


def test_the_notebook_is_that_of_the_page():
    assert MAKER["NOTEBOOK"].read_text() == MAKER["notebook"](), "run python tools/notebook.py"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="pip install 'adde[dev]'")
    nbformat = pytest.importorskip("nbformat")
    # A checkout of its own: the tutorial writes into the working folder.
    for name in ("adde", "export", "serve_onnx", "shards", "train"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "examples").mkdir()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copy(MAKER["NOTEBOOK"], tmp_path / "examples")
    page = nbformat.reads(MAKER["NOTEBOOK"].read_text(), as_version=4)
    run = {"metadata": {"path": str(tmp_path / "examples")}}
    nbclient.NotebookClient(page, timeout=600, resources=run).execute()
    (asked,) = [cell for cell in page.cells if "searcher.search(" in cell["source"]]
    lines = asked["outputs"][0]["text"].splitlines()
    assert len(lines) == 5
    assert sum("'headwear_colour': 'red'" in line for line in lines) >= 3
    assert (tmp_path / "tutorial" / "answer.png").stat().st_size > 10_000
