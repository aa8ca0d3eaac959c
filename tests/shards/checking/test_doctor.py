"""shards/doctor.py: its search against all pairs, its figures against plain loops, its page."""

import io
import re
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from programs import run

from adde.schema import UNKNOWN
from adde.shards.catalogues.tables.tabular import TableOptions, read_catalogue
from adde.shards.checking import similar
from adde.shards.checking.doctor import as_text, diagnose, scan
from adde.shards.checking.doctor_page import write_page
from adde.shards.index import ShardIndex
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.shards.reader import iterate


def flipped(bits, count, rng):
    copy = bits.copy()
    copy[rng.choice(len(bits), count, replace=False)] ^= True
    return copy


def packed(bits):
    return np.packbits(bits.reshape(len(bits), similar.BANDS, -1), axis=2).view(np.uint16)[:, :, 0]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40))
def test_search_against_all_pairs(seed, copies):
    rng = np.random.default_rng(seed)
    bits = rng.random((30, similar.HASH_BITS)) < 0.5
    twins = [flipped(bits[rng.integers(30)], rng.integers(0, 30), rng) for _ in range(copies)]
    bits = np.concatenate([bits, *(twin[None] for twin in twins)])
    thumbnails = rng.integers(100, 108, (len(bits), 8, 8, 3)).astype(np.uint8)
    thumbnails[rng.random(len(bits)) < 0.2] = 0
    kinds = rng.integers(0, 3, len(bits))
    found = similar.near_duplicates(packed(bits), thumbnails, kinds)
    expected = {}
    for i in range(len(bits)):
        for j in range(i + 1, len(bits)):
            apart = int((bits[i] != bits[j]).sum())
            levels = np.abs(thumbnails[i].astype(int) - thumbnails[j]).mean()
            if kinds[i] != kinds[j] and apart <= similar.BITS_APART and levels <= 6:
                expected[i, j] = apart
    pairs = dict(zip(map(tuple, found.rows.tolist()), found.bits_apart.tolist()))
    assert pairs.items() <= expected.items()
    assert len(pairs) == len(found.rows)
    # No pair that differs in fewer bits than there are bands is missed.
    sure = {pair for pair, apart in expected.items() if apart < similar.BANDS}
    assert sure <= pairs.keys()
    assert list(pairs.values()) == sorted(pairs.values())


def photograph(seed, side=160):
    """Return soft blobs with a little grain, like a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray((smooth + rng.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8))


def again(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda image: again(image, 60), True),
        (lambda image: image.resize((96, 96)), True),
        (lambda image: image.point(lambda level: min(255, level + 4)), True),
        (lambda image: image.filter(ImageFilter.GaussianBlur(1)), True),
        (lambda image: Image.merge("RGB", image.split()[::-1]), False),  # another colour
        (lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), False),
        (lambda image: photograph(99), False),
    ],
)
def test_similar_pictures_are_found(change, same):
    for seed in range(8):
        image = photograph(seed)
        looks = [similar.fingerprint(image), similar.fingerprint(change(image))]
        hashes, thumbnails = (np.stack(column) for column in zip(*looks))
        found = similar.near_duplicates(hashes, thumbnails, np.array([0, 1]))
        assert len(found.rows) == same, seed


def test_a_crowd_of_equal_pictures_is_no_trouble():
    hashes = np.zeros((4_000, similar.BANDS), np.uint16)
    thumbnails = np.zeros((4_000, 8, 8, 3), np.uint8)
    kinds = np.arange(4_000) % 2
    found = similar.near_duplicates(hashes, thumbnails, kinds)
    assert 0 < len(found.rows) <= 4_000 * similar.WINDOW


def test_figures_by_loops(tiny_shards):
    index = ShardIndex.read(tiny_shards)
    found = diagnose(index, scan(index, workers=1))
    for column, attribute in enumerate(found["attributes"]):
        for split in index.splits:
            labels = [int(sample.labels[column]) for sample in iterate(index, split)]
            counts = Counter(label for label in labels if label != UNKNOWN)
            assert attribute["counts"][split] == [
                counts[v] for v in range(len(attribute["values"]))
            ]
            assert attribute["known"][split] == sum(counts.values()) / len(labels)
        train = attribute["counts"]["train"]
        shares = [count / sum(train) for count in train]
        entropy = -sum(share * np.log(share) for share in shares) / np.log(len(shares))
        assert attribute["balance"] == pytest.approx(entropy)
        assert attribute["largest"] == max(shares)
    for split in index.splits:
        labels = [sample.labels for sample in iterate(index, split)]
        alone = [
            not any(
                (own != other).sum() == 1
                and UNKNOWN not in (own[own != other], other[own != other])
                for other in labels
            )
            for own in labels
        ]
        assert found["single_edit"][split]["in_split"] == 1 - np.mean(alone)
        assert found["single_edit"][split]["in_group"] <= 1 - np.mean(alone)
    assert (found["broken"], found["blank"]) == ([], [])
    assert found["short_side"] == {"least": 32, "median": 32}


@pytest.fixture
def faulty(shop, rows, tmp_path):
    """Shards with a near-duplicate in another split, blank pictures and a broken one."""
    for number, row in enumerate(rows):
        row["split"] = "test" if number % 4 == 0 else "train"
        row["sleeve"] = "cape" if number in (8, 12) else row["sleeve"]  # in test alone
    table, images = shop(rows)
    for number in range(60):
        photograph(number, side=60).save(images / f"{number:02d}.jpg", quality=95)
    photograph(4, side=60).resize((48, 48)).save(images / "05.jpg", quality=80)
    Image.new("RGB", (40, 50), "white").save(images / "07.jpg")
    Image.new("RGB", (40, 50), "white").save(images / "08.jpg")
    options = TableOptions(attributes=("sleeve", "colour"), val_share=0, min_count=0)
    pack(
        read_catalogue(table, images, options, 64),
        tmp_path / "s",
        PackOptions(),
        engine("processes", 1),
    )
    # A build rejects broken pictures; other writers may not.
    index = ShardIndex.read(tmp_path / "s")
    shard = index.split("train")[0]
    at, size, *rest = shard.members[3]
    content = bytearray((index.root / shard.name).read_bytes())
    content[at : at + size] = bytes(size)
    json_at, json_size, *_ = rest
    shard.members[3][4] = zlib.crc32(bytes(size) + content[json_at : json_at + json_size])
    (index.root / shard.name).write_bytes(content)
    index.write()
    return index


def test_problems_are_reported(faulty, tmp_path):
    scanned = scan(faulty, workers=1)
    found = diagnose(faulty, scanned)
    (pair,) = found["near_duplicates"]
    assert {scanned.item_ids[row] for row in pair["rows"]} == {"04.jpg", "05.jpg"}
    assert {scanned.item_ids[row] for row in found["blank"]} == {"07.jpg", "08.jpg"}
    ((broken, reason),) = ((b["row"], b["reason"]) for b in found["broken"])
    assert "sample 3: expected a picture that decodes" in reason
    assert found["attributes"][0]["unseen"] == ["cape"]
    text = as_text(found, scanned.item_ids)
    assert "1 values of 'sleeve' that no training item has, but others do:\n  cape" in text
    assert re.search(r"1 pairs .*\n  0[45]\.jpg \(\w+\) = 0[45]\.jpg \(\w+\)", text)
    assert "2 pictures are blank:\n  07.jpg\n  08.jpg" in text or "08.jpg\n  07.jpg" in text
    assert f"1 pictures do not decode:\n  {scanned.item_ids[broken]}: " in text
    write_page(faulty, found, scanned, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for word in ("04.jpg", "05.jpg", "07.jpg", "08.jpg", scanned.item_ids[broken], "cape"):
        assert word in page
    assert page.count("data:image/jpeg;base64,") == 3 + 3 + 2 + 2  # values, the pair, the blank
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # no network requests


def test_the_program(faulty, tmp_path):
    out = tmp_path / "new" / "page.html"
    done = run("doctor.py", "--shards", faulty.root, "--workers", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "1 pairs of pictures that look the same in different splits" in done.stdout
    assert out.exists()
