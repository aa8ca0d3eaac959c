"""Every figure against a second implementation, written from the definition in plain loops."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adde import metrics, ranking
from adde.methods.adde.evaluation import Encoded, evaluate_split
from adde.metrics import Queries
from adde.schema import UNKNOWN, Attribute, Schema
from adde.scoring import Calibration

SIZES = (3, 2, 2)
SCHEMA = Schema(tuple(Attribute(f"a{i}", tuple("xyz"[:s])) for i, s in enumerate(SIZES)))
WIDTH = 2

# Tables of labels small enough that items repeat, miss labels and differ in one attribute.
label_tables = st.lists(
    st.tuples(*(st.integers(UNKNOWN, size - 1) for size in SIZES)), min_size=1, max_size=14
).map(lambda rows: np.array(rows, dtype=np.int64))
seeds = st.integers(0, 2**32 - 1)


# The definitions of docs/architecture.md, one loop at a time.


def queries_by_loops(labels, sizes):
    rows = [tuple(row) for row in labels.tolist()]
    found = []
    for item, row in enumerate(rows):
        for attribute, size in enumerate(sizes):
            for value in range(size):
                target = (*row[:attribute], value, *row[attribute + 1 :])
                if value != row[attribute] and target in rows:
                    found.append((item, attribute, value, target))
    return found


def rank_by_loops(cost_of, count, k):
    return sorted(range(count), key=lambda row: (cost_of(row), row))[:k]


def figures_by_loops(ranked, labels, queries):
    def ndcg(relevances):
        gained = wanted = 0.0
        for rank, relevance in enumerate(relevances, start=1):
            gained += (2**relevance - 1) / math.log(rank + 1)
            wanted += 1 / math.log(rank + 1)
        return gained / wanted

    sums = {}
    for answers, (_, edited, _, target) in zip(ranked, queries):
        agrees = [[labels[row][a] == t for a, t in enumerate(target)] for row in answers]
        figures = {f"hit@{k}": any(all(m) for m in agrees[:k]) for k in (1, 10, 20, 30, 40, 50)}
        figures["ndcg@30"] = ndcg([sum(m) / len(m) for m in agrees[:30]])
        figures["ndcg_target@30"] = ndcg([float(m[edited]) for m in agrees[:30]])
        rest = [[x for a, x in enumerate(m) if a != edited] for m in agrees[:30]]
        figures["ndcg_others@30"] = ndcg([sum(m) / len(m) if m else 1.0 for m in rest])
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value
    return {name: total / len(queries) for name, total in sums.items()}


def argmax_by_loops(logits, sizes):
    predicted, start = [], 0
    for size in sizes:
        own = logits[start : start + size].tolist()
        predicted.append(own.index(max(own)))
        start += size
    return predicted


def log_probability_by_loops(logits, sizes, wanted):
    total, start = 0.0, 0
    for size, value in zip(sizes, wanted):
        own = logits[start : start + size].tolist()
        total += own[value] - math.log(sum(math.exp(x) for x in own))
        start += size
    return total


def as_tuples(queries):
    columns = (queries.reference, queries.attribute, queries.value, queries.targets)
    return [(i, a, v, tuple(t)) for i, a, v, t in zip(*(column.tolist() for column in columns))]


def exact_unit_vectors(random, count):
    """(count, 6) float32 with coordinates 0 and +-1/2: dot products are exact, ties are many."""
    vectors = np.zeros((count, len(SIZES) * WIDTH), dtype=np.float32)
    for row in vectors:
        row[random.choice(len(row), 4, replace=False)] = random.choice([-0.5, 0.5], 4)
    return vectors


def catalogue(labels, seed):
    """Embeddings (N, A, D) whose distances tie often, logits (N, V) right more often than not."""
    random = np.random.default_rng(seed)
    embeddings = exact_unit_vectors(random, len(labels)).reshape(len(labels), len(SIZES), WIDTH)
    noise = random.integers(-3, 4, (len(labels), SCHEMA.num_values)).astype(np.float32)
    return embeddings, noise + 2 * SCHEMA.multi_hot(labels)


def unedited(embeddings, indicator):
    return embeddings.reshape(len(embeddings), -1)


def evaluate(embeddings, logits, labels, edit=unedited, queries=None):
    """`evaluate_split` without presence, uncalibrated, few edits of each number.

    An edit weighs more than all other attributes together.
    """
    plain = Calibration((1.0,) * len(SIZES), (), 0.01, 4.0)
    queries = metrics.manipulation_queries(labels) if queries is None else queries
    encoded = Encoded(embeddings, logits, None, labels, np.arange(len(labels)))
    return evaluate_split(encoded, SCHEMA, edit, plain, queries, most=200)


@given(label_tables)
def test_queries_are_those_of_the_definition_in_order(labels):
    assert as_tuples(metrics.manipulation_queries(labels)) == queries_by_loops(labels, SIZES)


def test_unknown_equals_only_unknown_in_a_target():
    known, unknown, other = [0, 0, 0], [0, UNKNOWN, 0], [1, 0, 0]
    assert as_tuples(metrics.manipulation_queries(np.array([known, unknown, other]))) == [
        (0, 0, 1, (1, 0, 0)),
        (1, 1, 0, (0, 0, 0)),  # a value can be asked for where none is known
        (2, 0, 0, (0, 0, 0)),  # and only `known` answers: `unknown` misses attribute 1
    ]


@given(seeds, st.integers(1, 12), st.integers(1, 14))
def test_top_k_is_by_distance_then_row(seed, count, k):
    random = np.random.default_rng(seed)
    gallery, queries = exact_unit_vectors(random, count), exact_unit_vectors(random, 3)
    ranked = ranking.top_k(queries, gallery, k)
    assert ranked.dtype == np.int64
    for query, answers in zip(queries, ranked.tolist()):

        def distance(row, query=query):
            return sum((x - y) ** 2 for x, y in zip(query.tolist(), gallery[row].tolist()))

        assert answers == rank_by_loops(distance, count, k)


def test_top_k_orders_a_large_gallery_as_a_full_sort_does():
    random = np.random.default_rng(0)
    gallery = random.standard_normal((3000, 8), dtype=np.float32)
    queries = random.standard_normal((20, 8), dtype=np.float32)
    distances = ((queries[:, None].astype(np.float64) - gallery) ** 2).sum(axis=2)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :50]
    np.testing.assert_array_equal(ranking.top_k(queries, gallery), expected)


@given(st.integers(1, 30), st.integers(1, 30), seeds)
def test_smallest_keeps_the_lowest_of_equal_costs(count, k, seed):
    costs = np.random.default_rng(seed).integers(0, 3, (4, count)).astype(np.float32)
    expected = [rank_by_loops(row.__getitem__, count, k) for row in costs]
    assert metrics.smallest(costs, k).tolist() == expected


@given(label_tables, seeds, st.integers(1, 50))
def test_retrieval_metrics_are_those_of_the_definition(labels, seed, k):
    queries = metrics.manipulation_queries(labels)
    if not len(queries):
        return
    random = np.random.default_rng(seed)
    ranked = np.array([random.permutation(len(labels))[:k] for _ in range(len(queries))])
    found = metrics.retrieval_metrics(ranked, labels, queries)
    expected = figures_by_loops(ranked.tolist(), labels.tolist(), as_tuples(queries))
    assert found.pop("queries") == len(queries)
    assert found == pytest.approx(expected, abs=1e-12)


def test_ndcg_by_hand():
    # Answers 0 and 1 agree with the target (1, 0) in the second attribute, then in both.
    labels = np.array([[0, 0], [1, 0]])
    queries = Queries(*(np.array([x]) for x in (0, 0, 1)), targets=np.array([[1, 0]]))
    found = metrics.retrieval_metrics(np.array([[0, 1]]), labels, queries)
    ideal = 1 / math.log(2) + 1 / math.log(3)
    half = (2**0.5 - 1) / math.log(2) + 1 / math.log(3)
    assert found["ndcg@30"] == pytest.approx(half / ideal)
    assert found["ndcg_target@30"] == pytest.approx(1 / math.log(3) / ideal)
    assert found["ndcg_others@30"] == 1.0
    assert (found["hit@1"], found["hit@10"]) == (0.0, 1.0)


def test_one_attribute_has_no_others_to_lose():
    labels = np.array([[0], [1]])
    queries = metrics.manipulation_queries(labels)
    figures = metrics.retrieval_metrics(np.array([[0, 1], [1, 0]]), labels, queries)
    assert figures["ndcg_others@30"] == 1.0
    assert figures["ndcg@30"] == figures["ndcg_target@30"] < 1.0


@given(label_tables, seeds)
def test_hits_by_attribute_split_the_hits(labels, seed):
    queries = metrics.manipulation_queries(labels)
    embeddings, logits = catalogue(labels, seed)
    ranked = ranking.rank_edits(queries, embeddings, logits, SCHEMA, unedited, k=12)
    found = metrics.hits_by_attribute(ranked, labels, queries, SCHEMA)
    edited = {SCHEMA.names[a] for a in queries.attribute.tolist()}
    assert set(found) == (edited | {"macro"} if edited else set())
    for key in ("hit@1", "hit@10", "hit@30") if edited else ():
        mean = sum(found[name][key] for name in edited) / len(edited)
        assert found["macro"][key] == pytest.approx(mean)
    for attribute, name in enumerate(SCHEMA.names):
        rows = [i for i, q in enumerate(as_tuples(queries)) if q[1] == attribute]
        if rows:
            part = [as_tuples(queries)[i] for i in rows]
            expected = figures_by_loops(ranked[rows].tolist(), labels.tolist(), part)
            assert found[name]["queries"] == len(rows)
            assert found[name]["hit@10"] == pytest.approx(expected["hit@10"])
            assert found[name]["hit@30"] == pytest.approx(expected["hit@30"])


@given(label_tables, seeds)
def test_accuracy_counts_known_labels_only(labels, seed):
    _, logits = catalogue(labels, seed)
    predicted = metrics.predicted_labels(logits, SCHEMA)
    assert predicted.tolist() == [argmax_by_loops(row, SIZES) for row in logits]
    expected = {}
    for attribute, name in enumerate(SCHEMA.names):
        known = [i for i, row in enumerate(labels) if row[attribute] != UNKNOWN]
        if known:
            right = sum(predicted[i, attribute] == labels[i, attribute] for i in known)
            expected[name] = right / len(known)
    mean = sum(expected.values()) / len(expected) if expected else 0.0
    found = metrics.attribute_accuracy(predicted, labels, SCHEMA.names)
    assert found == pytest.approx({"mean": mean, **expected})


@given(label_tables, seeds)
@settings(max_examples=60)
def test_baselines_rank_as_defined(labels, seed):
    embeddings, logits = catalogue(labels, seed)
    queries = metrics.manipulation_queries(labels)
    found = ranking.rank_baselines(queries, embeddings, logits, SCHEMA, k=9)
    assert tuple(found) == ("random", "no_edit", "classifier", "classifier_soft")
    count, flat = len(labels), embeddings.reshape(len(labels), -1)
    predicted = [argmax_by_loops(row, SIZES) for row in logits]
    for position, (item, attribute, value, _) in enumerate(as_tuples(queries)):
        wanted = list(predicted[item])
        wanted[attribute] = value

        def distance(row, item=item):
            return sum((x - y) ** 2 for x, y in zip(flat[item].tolist(), flat[row].tolist()))

        def mismatches(row, wanted=wanted):
            return sum(x != y for x, y in zip(predicted[row], wanted))

        def by_matches(row, distance=distance, mismatches=mismatches):
            return mismatches(row), distance(row)

        assert found["no_edit"][position].tolist() == rank_by_loops(distance, count, 9)
        assert found["classifier"][position].tolist() == rank_by_loops(by_matches, count, 9)
        # Sums of logarithms do not tie exactly: hold the scores, rank by rank, to the best ones.
        scores = [log_probability_by_loops(row, SIZES, wanted) for row in logits]
        soft = [scores[row] for row in found["classifier_soft"][position].tolist()]
        assert soft == pytest.approx(sorted(scores, reverse=True)[:9], abs=1e-4)
        assert sorted(found["random"][position].tolist())[-1] < count


def test_random_answers_hit_as_often_as_chance():
    labels = np.stack(np.meshgrid(range(20), range(10), indexing="ij"), axis=-1).reshape(-1, 2)
    schema = Schema(
        tuple(Attribute(n, tuple(map(str, range(s)))) for n, s in (("a", 20), ("b", 10)))
    )
    queries = metrics.manipulation_queries(labels)
    embeddings = np.ones((200, 2, 1), dtype=np.float32)
    logits = np.zeros((200, 30), dtype=np.float32)
    ranked = ranking.rank_baselines(queries, embeddings, logits, schema)["random"]
    again = ranking.rank_baselines(queries, embeddings, logits, schema)["random"]
    np.testing.assert_array_equal(ranked, again)
    figures = metrics.retrieval_metrics(ranked, labels, queries)
    # One item in 200 is right, so the first k of them hold it with k / 200.
    assert figures["hit@10"] == pytest.approx(10 / 200, abs=0.01)
    assert figures["hit@50"] == pytest.approx(50 / 200, abs=0.02)


def test_the_edit_takes_away_the_predicted_value():
    labels = np.array([[0, 0, 0], [1, 0, 0]])
    logits = SCHEMA.multi_hot(np.array([[2, 1, 0], [1, 0, 0]])).astype(np.float32)
    embeddings = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    seen = []

    def edit(embeddings, indicator):
        seen.append((embeddings.copy(), indicator.copy()))
        return unedited(embeddings, indicator)

    ranking.rank_edits(metrics.manipulation_queries(labels), embeddings, logits, SCHEMA, edit)
    ((given_embeddings, indicator),) = seen
    np.testing.assert_array_equal(given_embeddings, embeddings)
    # Item 0 is labelled 0 and taken for 2: asked for 1, it loses 2. Item 1 is asked for 0.
    np.testing.assert_array_equal(indicator[:, :3], [[0, 1, -1], [1, -1, 0]])
    assert not indicator[:, 3:].any()


@given(label_tables.filter(lambda labels: (labels != UNKNOWN).all()))
@settings(max_examples=25, deadline=None)
def test_perfect_embeddings_and_edits_are_judged_perfect(labels):
    hot = SCHEMA.multi_hot(labels)
    width = SCHEMA.num_values
    embeddings = np.zeros((len(labels), len(SIZES), width), dtype=np.float32)
    for attribute, (start, size) in enumerate(zip(SCHEMA.offsets, SIZES)):
        embeddings[:, attribute, start : start + size] = hot[:, start : start + size]

    def edit(embeddings, indicator):
        edited = embeddings.copy()
        for attribute, (start, size) in enumerate(zip(SCHEMA.offsets, SIZES)):
            edited[:, attribute, start : start + size] += indicator[:, start : start + size]
        return (edited / math.sqrt(len(SIZES))).reshape(len(edited), -1)

    content = evaluate(embeddings, 20 * hot, labels, edit)
    assert content["attribute_accuracy"]["mean"] == 1.0
    for rows in content["edits"]["match"].values():
        assert rows["first_wanted"] == rows["wanted@10"] == float(rows["queries"] > 0)
    if content["adde"]["queries"]:
        assert content["match"]["hit@1"] == 1.0
        assert content["adde"]["hit@1"] == 1.0
        assert content["baselines"]["classifier"]["hit@1"] == 1.0
        assert content["baselines"]["classifier_soft"]["hit@1"] == 1.0
        assert content["baselines"]["no_edit"]["hit@1"] == 0.0


def test_a_split_without_queries_has_every_figure():
    labels = np.array([[0, 0, 0], [1, 1, 1]])
    content = evaluate(*catalogue(labels, 0), labels)
    names = metrics.METRIC_NAMES
    bounds = dict.fromkeys(names, (0.0, 0.0))
    zeros = {**dict.fromkeys(names, 0.0), "queries": 0, "interval": bounds}
    assert content["adde"] == content["match"] == zeros
    assert content["baselines"] == dict.fromkeys(ranking.BASELINES, zeros)
    assert content["by_attribute"] == {}


def test_given_queries_are_judged_alone():
    labels = np.random.default_rng(5).integers(0, 2, (30, len(SCHEMA.sizes)))
    embeddings, logits = catalogue(labels, 0)
    every = metrics.manipulation_queries(labels)
    assert len(every) > 20
    some = every[np.arange(3, len(every), 7)]
    content = evaluate(embeddings, logits, labels, queries=some)
    flat = embeddings.reshape(len(labels), -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    distances = ((flat[some.reference][:, None] - flat[None]) ** 2).sum(axis=2)
    ranked = np.argsort(distances, axis=1, kind="stable")
    found = content["baselines"]["no_edit"]
    assert found.pop("queries") == len(some)
    bounds = found.pop("interval")
    assert all(bounds[name][0] <= found[name] <= bounds[name][1] for name in found)
    assert found == pytest.approx(figures_by_loops(ranked, labels, as_tuples(some)))


def test_blocks_change_nothing(monkeypatch):
    labels = np.random.default_rng(3).integers(UNKNOWN, 2, (40, 3))
    embeddings, logits = catalogue(labels, 3)
    whole = evaluate(embeddings, logits, labels)
    monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", 1000)
    blocks = evaluate(embeddings, logits, labels)
    assert whole["adde"]["queries"] > 50
    for ours, theirs in [
        (whole["adde"], blocks["adde"]),
        *((whole["baselines"][n], blocks["baselines"][n]) for n in ranking.BASELINES),
    ]:
        assert ours.pop("interval").keys() == theirs.pop("interval").keys()
        assert ours == pytest.approx(theirs, abs=1e-12)
    assert blocks["match"]["ndcg@30"] == pytest.approx(whole["match"]["ndcg@30"], abs=1e-12)
    assert blocks["edits"] == whole["edits"]


def test_an_interval_is_that_of_independent_references():
    """Of one query each, the standard error of a share; of ten equal ones each, the same."""
    hits = (np.random.default_rng(0).random(2000) < 0.3).astype(float)
    rows = np.arange(2000)
    error = math.sqrt(hits.mean() * (1 - hits.mean()) / 2000)
    for repeats in (1, 10):
        found = metrics.summary({"hit": np.repeat(hits, repeats)}, np.repeat(rows, repeats))
        low, high = found["interval"]["hit"]
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
        assert low < hits.mean() < high


@pytest.mark.parametrize("function", ["top_k", "baselines"])
def test_memory_is_that_of_a_block(monkeypatch, function):
    monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", 1 << 16)
    items = 1500
    labels = np.random.default_rng(0).integers(0, 2, (items, 3))
    embeddings, logits = catalogue(labels, 0)
    rows = np.arange(items)
    ones = np.ones_like(rows)
    tracemalloc.start()
    if function == "top_k":
        flat = unedited(embeddings, logits)
        ranking.top_k(flat, flat)
    else:
        queries = Queries(rows, 0 * ones, ones, labels)
        ranking.rank_baselines(queries, embeddings, logits, SCHEMA, k=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < items * items * 4 / 3, "a third of one float32 array of all distances"
