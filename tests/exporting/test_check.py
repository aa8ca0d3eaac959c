"""A bundle that is not what was exported is found out, and the cause is named."""

import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adde.bundle import BUNDLE_NAME, FILES, Bundle
from adde.errors import UserError
from adde.exporting import check
from adde.exporting.check import check_bundle
from adde.serving.onnx import providers
from adde.serving.onnx.session import Session

PROGRAM = Path(__file__).parents[2] / "export" / "check.py"


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def test_a_whole_bundle_passes_at_every_batch(tiny_bundle):
    bundle, rows = check_bundle(tiny_bundle)
    assert bundle == Bundle.read(tiny_bundle)
    assert [row["batch"] for row in rows] == [1, 2, 7, 64]
    assert all(row["max_error"] < 1e-5 for row in rows)
    assert all(row["encoder_ms"] > 0 and row["memory_ms"] > 0 for row in rows)


def test_a_device_that_fails_is_told_and_the_others_go_on(copy, monkeypatch, capsys):
    class Failing(Session):
        def __init__(self, bundle, device):
            if device == "tensorrt":
                raise UserError("no engine")
            super().__init__(bundle)
            self.device = device

        def encode(self, images):
            found = super().encode(images)
            if self.device == "cuda":
                found.embeddings[-1, -1, -1] = np.inf
            return found

    monkeypatch.setattr(check, "Session", Failing)
    _, rows = check_bundle(copy, ("tensorrt", "cpu", "cuda"))
    assert [row["device"] for row in rows] == ["tensorrt", *["cpu"] * 4, "cuda"]
    assert rows[0]["failure"] == "no engine"
    assert re.search(r"embeddings at batch 1: expected the golden .* of inf", rows[-1]["failure"])

    # The program tells it in the table, and in its status.
    monkeypatch.setattr(providers, "missing", lambda *_: [])
    monkeypatch.setattr(sys, "argv", ["check.py", "--bundle", str(copy)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2 + 4 + 2
    assert "fp32  tensorrt  no engine" in printed.out
    assert f"found none for {copy} on cuda, {copy} on tensorrt; the rows" in printed.err


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_named(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 8
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: damaged"):
        check_bundle(copy)


@pytest.mark.parametrize("name", ["embeddings", "logits", "query"])
def test_other_weights_are_noticed_though_every_hash_is_right(copy, name):
    bundle = Bundle.read(copy)
    golden = bundle.golden()
    array = getattr(golden, name).copy()
    array.flat[array.argmax()] *= 1.001
    replace(golden, **{name: array}).write(copy / "golden.npz")
    bundle.write()
    with pytest.raises(UserError, match=rf"{name} at batch \d: .*golden.* found an error of 0\.00"):
        check_bundle(copy)


def test_another_opset_or_size_is_noticed(copy):
    bundle = Bundle.read(copy)
    replace(bundle, details={**bundle.details, "opset": 17}).write()
    with pytest.raises(UserError, match=r"encoder\.onnx: expected opset 17, found 20"):
        check_bundle(copy)
    replace(bundle, width=7).write()
    with pytest.raises(UserError, match=r"golden embeddings: expected shape \(4, 3, 7\), found"):
        check_bundle(copy)


def test_a_file_that_is_no_graph_is_named(copy):
    bundle = Bundle.read(copy)
    (copy / "memory.onnx").write_bytes(b"no graph at all")
    bundle.write()
    with pytest.raises(UserError, match=r"memory\.onnx: expected an ONNX graph"):
        check_bundle(copy)


def test_another_schema_is_refused(copy):
    content = json.loads((copy / BUNDLE_NAME).read_text())
    content["schema"]["attributes"][0]["values"][0] = "crimson"
    (copy / BUNDLE_NAME).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"bundle\.json: schema_hash: expected"):
        check_bundle(copy)
