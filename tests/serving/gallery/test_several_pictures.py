"""A gallery of items with several pictures answers each item once."""

from contextlib import closing

import numpy as np
import pytest

from adde.errors import UserError
from adde.schema import UNKNOWN
from adde.serving import Searcher
from adde.serving.gallery.base import read_picture
from adde.serving.gallery.build import build_gallery
from adde.serving.gallery.embedding import count_items, embed_here, sample_ids
from adde.serving.gallery.embedding_ray import on_ray
from adde.serving.gallery.opening import open_gallery
from adde.shards.reader import iterate


@pytest.fixture(scope="module")
def samples(several_pictures):
    """The samples of every item, in stored order."""
    found = {}
    for split in several_pictures.splits:
        for sample in iterate(several_pictures, split):
            found.setdefault(sample.item, []).append(sample)
    assert 2 < max(map(len, found.values())) == several_pictures.most_pictures < 5
    return found


def test_an_item_is_the_mean_of_its_pictures(calibrated, session, several_pictures, samples):
    found = [
        item for batch in embed_here(calibrated, session, several_pictures, "all") for item in batch
    ]
    assert [item.item_id for item in found] == list(samples)
    assert count_items(several_pictures, "all") == len(samples)
    for item in found:
        pictures = [calibrated.preprocess.load(s.picture) for s in samples[item.item_id]]
        outputs = [session.encode(picture[None]) for picture in pictures]
        embedding, logits, presence = (np.mean([o[n] for o in outputs], axis=0) for n in range(3))
        np.testing.assert_allclose(item.vector * item.norm, embedding[0], atol=1e-4)
        beliefs = calibrated.calibration.beliefs(logits, presence, calibrated.schema)
        np.testing.assert_allclose(item.beliefs, beliefs[0], atol=1e-4)
        known = [s.labels for s in samples[item.item_id]]
        for a, label in enumerate(item.labels.tolist()):
            given = [row[a] for row in known if row[a] != UNKNOWN]
            assert label == (given[0] if given else UNKNOWN)
    rest = [i for b in embed_here(calibrated, session, several_pictures, "all", 5) for i in b]
    assert [item.item_id for item in rest] == list(samples)[5:]
    for one, other in zip(found[5:], rest):
        np.testing.assert_array_equal(one.vector, other.vector)


def test_each_item_is_answered_once(calibrated, session, several_pictures, samples, tmp_path):
    build_gallery(calibrated, session, several_pictures.folder, tmp_path / "g")
    with closing(open_gallery(tmp_path / "g", calibrated)) as gallery:
        assert len(gallery) == len(samples)
        searcher = Searcher(calibrated, gallery, session=session)
        start = next(iter(samples))
        result = searcher.search(item=start, k=500)
        answered = [answer.item_id for answer in result]
        assert sorted(answered) == sorted(set(samples) - {start})
        picture = read_picture(gallery.header, gallery.get(start))
        assert picture == samples[start][0].picture
    assert set(sample_ids(several_pictures, "all", 500)) == set(samples)


def test_ray_refuses_items_with_several_pictures(calibrated, several_pictures):
    with pytest.raises(UserError, match="expected one picture per item, found up to 4"):
        next(on_ray(calibrated, ["cpu"])(several_pictures, "all", 0))
