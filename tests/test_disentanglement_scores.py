"""All metrics of an encoder together, their table, and codes of somebody else's."""

import json
import time

import numpy as np
import pytest

from adde.disentanglement import as_text, code, mig, read_codes, rf_metric_2, score
from adde.errors import UserError

SIZES = (3, 4, 2, 5)
N = 15_000


@pytest.fixture(scope="module")
def labels():
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(size, size=N) for size in SIZES], axis=1)


@pytest.fixture(scope="module")
def noisy(labels):
    rng = np.random.default_rng(1)
    mixed = labels @ rng.normal(size=(4, 6))
    return code(mixed + rng.normal(size=mixed.shape), labels)


def test_all_scores_and_the_table(noisy):
    found = score(noisy, sampled=noisy.codes + 1.0)
    assert found.figures["gaussian_tc_mean"] == pytest.approx(found.figures["gaussian_tc_sampled"])
    assert found.figures["mig"] == mig(noisy)
    assert found.figures["rf_metric_2"] == rf_metric_2(noisy)
    assert found.notes == ()
    read = json.loads(json.dumps(found.to_json()))
    assert list(read["leakage"]["z0"]) == ["factor 0", "factor 1", "factor 2", "factor 3"]
    other = score(code(noisy.codes, noisy.labels, None, [0, 0, 0, 1, 1, 1]))
    text = as_text({"vae": found, "adde": other})
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["vae", "adde"]
    assert ["mig", f"{found.figures['mig']:.3f}", "-"] in lines
    assert "accuracy of each factor" in text


def test_what_is_left_out_is_told(labels):
    codes = labels + 0.1
    few = labels[:600].copy()
    few[3, 1] = -1
    found = score(code(codes[:600], few, None, list("xxyz")), tasks=True)
    assert "downstream_lgbm@100" in found.figures
    assert not {"mig", "rf_metric_2", "downstream_lgbm@1000"} & set(found.figures)
    told = " / ".join(found.notes)
    assert "rf_metric_2 left out: labels: expected a grid" in told
    assert "blocks of several" in told
    assert "learn from [10, 100] items, as 399" in told or "as 400" in told
    assert all(note in as_text({"few": found}) for note in found.notes)


def test_sampled_codes_have_to_be_like_the_codes(noisy):
    with pytest.raises(UserError, match=r"sampled: expected numbers \(15000, 6\) .* \(10, 6\)"):
        score(noisy, sampled=noisy.codes[:10])
    with pytest.raises(UserError, match="sampled: expected finite numbers"):
        score(noisy, sampled=noisy.codes * np.nan)


@pytest.mark.slow
def test_all_metrics_of_a_model_take_five_seconds_of_a_core():
    sizes = (10, 10, 10, 8, 4, 15)
    rng = np.random.default_rng(0)
    labels = np.stack([rng.integers(size, size=15_000) for size in sizes], axis=1)
    codes = np.column_stack([labels / sizes, rng.normal(size=(15_000, 4))])
    codes = codes @ np.linalg.qr(rng.normal(size=(10, 10)))[0] + 0.1 * rng.normal(size=codes.shape)
    score(code(codes[:1000], labels[:1000]))  # the libraries are imported
    start = time.process_time()
    score(code(codes, labels), sampled=codes)
    assert time.process_time() - start < 5


def test_codes_of_somebody_else(tmp_path, labels):
    path = tmp_path / "codes.npz"
    codes = labels.astype(np.float32)
    np.savez(
        path, codes=codes, labels=labels, factors=list("abcd"), blocks=list("xxyz"), sampled=codes
    )
    coded, sampled = read_codes(path)
    assert (coded.factors, coded.blocks) == (tuple("abcd"), ("x", "y", "z"))
    np.testing.assert_array_equal(sampled, labels)
    np.savez(path, codes=codes, labels=labels)
    assert read_codes(path)[1] is None


def test_files_that_are_no_codes(tmp_path):
    path = tmp_path / "codes.npz"
    with pytest.raises(UserError, match="found no file"):
        read_codes(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(UserError, match=r"codes.npz: expected an .npz"):
        read_codes(path)
    with path.open("wb") as file:
        np.save(file, np.zeros((200, 3)))
    with pytest.raises(UserError, match=r"codes.npz: expected an .npz"):
        read_codes(path)
    np.savez(path, codes=np.array([object()]), labels=np.zeros((1, 2)))
    with pytest.raises(UserError, match=r"codes.npz: expected an .npz"):
        read_codes(path)
    np.savez(path, codes=np.zeros((200, 3)))
    with pytest.raises(UserError, match=r"expected an array 'labels', found \['codes'\]"):
        read_codes(path)
    np.savez(path, codes=np.zeros((200, 3)), label=np.zeros((200, 2)))
    with pytest.raises(UserError, match="unknown array 'label'; did you mean 'labels'"):
        read_codes(path)
    np.savez(path, codes=np.zeros((200, 3)), labels=np.zeros((200, 2)))
    with pytest.raises(UserError, match=r"codes.npz: codes: .* constant"):
        read_codes(path)
