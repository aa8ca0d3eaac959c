"""Ray writes the same shards as the processes of this machine."""

import sys
from functools import partial

import pytest
from programs import run

from adde.errors import UserError
from adde.shards.packing.engine import engine

build = partial(run, "build.py")


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_ray_writes_the_same_bytes(shop, rows, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'adde[ray]'")
    table, images = shop(rows)
    (images / "07.jpg").write_bytes(b"not a picture")
    words = ("--catalogue", table, "--images", images, "--items-per-shard", 6)
    refused = build(*words, "--out", tmp_path / "ray", "--engine", "ray")
    assert refused.returncode == 1
    assert "1 pictures cannot be read" in refused.stderr
    # Shards that one engine finished are valid for any other.
    assert "finished shards are kept" in refused.stderr
    words = (*words, "--skip-unreadable")
    on_ray = build(*words, "--out", tmp_path / "ray", "--engine", "ray")
    assert on_ray.returncode == 0, on_ray.stderr
    assert build(*words, "--out", tmp_path / "here", "--workers", 1).returncode == 0
    assert content(tmp_path / "ray") == content(tmp_path / "here")


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"expected ray; pip install 'adde\[ray\]'"):
        list(engine("ray", None)(print, []))
