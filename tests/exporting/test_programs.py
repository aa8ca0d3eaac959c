"""The two programs, from a run folder to a checked bundle."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from adde.bundle import Bundle
from adde.exporting.export import is_up_to_date
from adde.files import this_process
from adde.methods.adde.config import AddeConfig
from adde.model import ModelSettings
from adde.shards.index import ShardIndex
from adde.training.checkpoints.checkpoint import Position
from adde.training.checkpoints.flat_shards import partition_replicated
from adde.training.checkpoints.saving import Saver
from adde.training.config import Data
from adde.training.recipes import write_config

ROOT = Path(__file__).parents[2]


def program(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "export" / name), run_name="__main__")


@pytest.fixture
def run(tmp_path, tiny_model, tiny_shards):
    """A run folder whose best checkpoint is `tiny_model`."""
    path = tmp_path / "runs" / "tiny"
    model = ModelSettings(backbone="test_resnet", image_size=32, width=6, hidden=8)
    config = AddeConfig(run=path, data=Data(shards=str(tiny_shards)), model=model)
    write_config(config, path)
    saver = Saver(config, ShardIndex.read(tiny_shards), this_process())
    pieces = partition_replicated(
        {f"model/{name}": v for name, v in tiny_model.state_dict().items()}
    )
    best = {"hit@30": 0.5, "hit@10": 0.3, "hit@1": 0.1}
    saver.save(Position("adde", 3, 17), lambda: pieces, best=best)
    saver.wait()
    saver.close()
    return path


def test_a_bundle_is_replaced_and_figures_of_other_weights_left_out(
    monkeypatch, capsys, tmp_path, run, tiny_bundle
):
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (run / "metrics.json").write_text('{"split": "test", "checkpoint": "step-00000004"}')
    program(monkeypatch, "to_onnx.py", "--run", run, "--out", tmp_path / "bundle")
    details = Bundle.read(tmp_path / "bundle").details
    assert details["source"]["step"] == 17
    assert details["retrieval"] is None
    assert "metrics.json: metrics of step-00000004, left out" in capsys.readouterr().out


def test_a_run_becomes_a_bundle_that_checks(monkeypatch, capsys, tmp_path, run):
    figures = {"split": "test", "checkpoint": "step-00000017", "adde": {"hit@30": 0.25}}
    (run / "metrics.json").write_text(json.dumps(figures))
    out = tmp_path / "bundle"
    program(monkeypatch, "to_onnx.py", "--run", run, "--out", out)
    printed = capsys.readouterr().out
    assert "parity at batch  7: embeddings" in printed
    assert "queries identical" in printed
    assert f"step-00000017 of {run}: {out} (" in printed
    details = Bundle.read(out).details
    assert details["retrieval"] == figures
    assert details["source"]["run"] == "tiny"
    assert details["source"]["checkpoint"] == "step-00000017"
    assert details["source"]["step"] == 17
    written = (out / "bundle.json").stat().st_mtime_ns
    program(monkeypatch, "to_onnx.py", "--run", run, "--out", out)
    assert capsys.readouterr().out == f"{out}: exported from the same before, nothing to do\n"
    assert (out / "bundle.json").stat().st_mtime_ns == written
    program(monkeypatch, "check.py", "--bundle", out)
    lines = capsys.readouterr().out.splitlines()
    assert "3 attributes x 6, 7 values, 32 px, fp32 (all), memory dense, opset 20" in lines[0]
    assert [line.split()[:3] for line in lines[2:]] == [
        ["fp32", "cpu", size] for size in ("1", "2", "7", "64")
    ]


def test_a_bundle_of_anything_else_is_exported_again(tiny_bundle, tmp_path):
    details = Bundle.read(tiny_bundle).details
    calibration = Bundle.read(tiny_bundle).calibration
    same = (details["retrieval"], details["source"], calibration)
    assert is_up_to_date(tiny_bundle, *same)
    assert not is_up_to_date(tmp_path, *same)
    assert not is_up_to_date(tiny_bundle, None, *same[1:])
    assert not is_up_to_date(tiny_bundle, same[0], {"run": "other"}, calibration)
    assert not is_up_to_date(tiny_bundle, *same[:2], None)
    assert not is_up_to_date(tiny_bundle, *same, "int8")
    assert not is_up_to_date(tiny_bundle, *same, split="val")
    damaged = shutil.copytree(tiny_bundle, tmp_path / "damaged")
    (damaged / "memory.onnx").write_bytes(b"")
    assert not is_up_to_date(damaged, *same)


@pytest.mark.parametrize("size", [30_000, 250_000])
def test_a_full_disk_leaves_no_bundle(monkeypatch, capsys, tmp_path, run, little_room, size):
    little_room(size)
    with pytest.raises(SystemExit) as stopped:
        program(monkeypatch, "to_onnx.py", "--run", run, "--out", tmp_path / "b")
    assert stopped.value.code == 1
    assert f"error: {tmp_path / 'b'}: File too large" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_run_without_checkpoint_ends_with_one_line(monkeypatch, capsys, tmp_path, run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(SystemExit) as stopped:
        program(monkeypatch, "to_onnx.py", "--run", run, "--out", tmp_path / "b")
    assert stopped.value.code == 1
    assert "best.json: expected a file, found none" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_damaged_bundle_ends_check_with_its_file(monkeypatch, capsys, tmp_path, tiny_bundle):
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    content = bytearray((copy / "memory.onnx").read_bytes())
    content[9] ^= 1
    (copy / "memory.onnx").write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        program(monkeypatch, "check.py", "--bundle", copy)
    assert stopped.value.code == 1
    assert f"error: {copy / 'memory.onnx'}: damaged" in capsys.readouterr().err
