"""A gallery holds what the shards hold, is embedded once, and never for the wrong bundle."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from adde.errors import UserError
from adde.files import read_json, write_json
from adde.schema import UNKNOWN, Schema
from adde.serving.gallery import open_gallery
from adde.serving.session import Session
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate


class Blind(Session):
    """A session that must not be used."""

    def __init__(self):
        pass

    def encode(self, images):
        raise AssertionError("embedded again")


@pytest.mark.parametrize("split", ["all", "train", "test"])
def test_every_item_is_there_in_stored_order(bundle, session, tiny_shards, split):
    gallery = open_gallery(bundle, session, tiny_shards, split)
    index = ShardIndex.read(tiny_shards)
    splits = ("train", "val", "test") if split == "all" else (split,)
    samples = [sample for name in splits for sample in iterate(index, name)]
    assert len(samples) == {"all": 96, "train": 60, "test": 24}[split]
    assert list(gallery.item_ids) == [sample.item_id for sample in samples]
    assert np.array_equal(gallery.labels, [sample.labels for sample in samples])
    assert (gallery.labels == UNKNOWN).any()
    for row, sample in enumerate(samples):
        assert gallery.sample(row).where == sample.where
        assert gallery.sample(row).picture == sample.picture
        assert gallery.row(sample.item_id) == row
        # One at a time, as a query would be.
        embeddings, logits = session.encode(bundle.preprocess.load(sample.picture)[None])
        expected = embeddings[0].ravel() / np.sqrt((embeddings[0] ** 2).sum())
        np.testing.assert_allclose(gallery.embeddings[row], expected, atol=1e-5)
        seen = [logits[0, :3].argmax(), logits[0, 3:5].argmax(), logits[0, 5:].argmax()]
        assert gallery.predicted[row].tolist() == seen


def test_the_second_time_nothing_is_embedded(bundle, session, tiny_shards, cache):
    first = open_gallery(bundle, session, tiny_shards, "test")
    again = open_gallery(bundle, Blind(), tiny_shards, "test")
    assert again.item_ids == first.item_ids
    for name in ("labels", "predicted", "embeddings"):
        assert np.array_equal(getattr(again, name), getattr(first, name))
        assert getattr(again, name).dtype == getattr(first, name).dtype
    assert len(list(cache.iterdir())) == 1


def test_another_split_bundle_or_index_is_embedded_anew(
    bundle, session, tiny_shards, tiny_bundle, tmp_path
):
    open_gallery(bundle, session, tiny_shards, "test")
    with pytest.raises(AssertionError, match="embedded again"):
        open_gallery(bundle, Blind(), tiny_shards, "val")
    other = replace(bundle, path=shutil.copytree(tiny_bundle, tmp_path / "b"))
    open_gallery(other, Blind(), tiny_shards, "test")  # the same bundle in another place
    replace(other, details={**other.details, "source": {"run": "another"}}).write()
    with pytest.raises(AssertionError, match="embedded again"):
        open_gallery(other, Blind(), tiny_shards, "test")
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    write_json(shards / "index.json", {**read_json(shards / "index.json"), "name": "renamed"})
    with pytest.raises(AssertionError, match="embedded again"):
        open_gallery(bundle, Blind(), shards, "test")


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut short", None])
def test_a_damaged_cache_is_made_again(bundle, session, tiny_shards, cache, damage):
    first = open_gallery(bundle, session, tiny_shards, "val")
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-300] if damage is None else damage)
    again = open_gallery(bundle, session, tiny_shards, "val")
    assert np.array_equal(again.embeddings, first.embeddings)
    open_gallery(bundle, Blind(), tiny_shards, "val")


def test_a_cache_that_cannot_be_written_is_told_and_not_needed(
    bundle, session, tiny_shards, cache, capsys
):
    cache.parent.write_text("a file where the folder should be")
    assert len(open_gallery(bundle, session, tiny_shards, "val").item_ids) == 12
    assert "warning: " in capsys.readouterr().err


def test_shards_of_another_schema_are_refused(bundle, session, tiny_shards, tmp_path):
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    index = ShardIndex.read(shards)
    first, *rest = index.schema.attributes
    schema = Schema((replace(first, values=(*first.values, "teal")), *rest))
    replace(index, schema=schema).write()
    with pytest.raises(UserError, match=r"different schemas: \w+ and \w+; .*'colour'.*teal"):
        open_gallery(bundle, session, shards)


def test_an_unknown_item_is_named_with_its_neighbours(bundle, session, tiny_shards):
    gallery = open_gallery(bundle, session, tiny_shards, "val")
    with pytest.raises(UserError, match=r"no item 'val-00000-003'.*did you mean 'val-000000-003'"):
        gallery.row("val-00000-003")
