"""A run that is used from another working directory."""

import pytest

from adde.errors import UserError
from adde.training.config import Config, Data
from adde.training.run_folder import open_shards


def test_shards_that_are_elsewhere_are_told_with_the_flag(tmp_path, monkeypatch, tiny_shards):
    monkeypatch.chdir(tiny_shards.parent)
    config = Config(data=Data(shards=tiny_shards.name))
    assert open_shards(config).root.name == tiny_shards.name
    monkeypatch.chdir(tmp_path)
    message = (
        f"{tiny_shards.name}: expected a folder of shards .* data.shards of the configuration, "
        f"'{tiny_shards.name}', relative to {tmp_path}: name the folder with --data.shards"
    )
    with pytest.raises(UserError, match=message):
        open_shards(config, flag="--data.shards")
    assert open_shards(config, str(tiny_shards)).root == tiny_shards
    gone = Config(data=Data(shards=str(tmp_path / "gone")))
    with pytest.raises(UserError, match="gone': name the folder with --shards"):
        open_shards(gone)
