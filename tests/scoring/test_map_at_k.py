"""MAP@K against a plain loop, scikit-learn and hand-computed examples."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tests.support.rankings import make_segments
from tests.support.truth import write_ratings_csv
from yt8m.errors import UsageError, Yt8mError
from yt8m.prediction.segments import segment_hashes
from yt8m.ranking.topk import TopK
from yt8m.scoring.map_at_k import (
    average_precision,
    map_at_k,
    map_from_probabilities,
    write_class_scores,
)
from yt8m.scoring.truth import Truth
from yt8m.submission.writing import ranked_segments, write_submission
from yt8m.vocabulary import Vocabulary


def slow_map(lists, ratings, k, dense=False):
    """The definition of the metric: lists {label: [(video, start)]}, ratings [(video, label, start, value)]."""
    precisions = {}
    for label in {label for _, label, _, _ in ratings}:
        rated = {(video, start) for video, other, start, _ in ratings if other == label}
        positives = {(v, start) for v, other, start, value in ratings if other == label and value > 0}
        if not positives:
            continue
        total = hits = seen = 0
        for segment in lists.get(label, [])[:k]:
            if not dense and segment not in rated:
                continue
            seen += 1
            if segment in positives:
                hits += 1
                total += hits / seen
        precisions[label] = total / len(positives)
    return sum(precisions.values()) / len(precisions), precisions


def as_bytes(lists):
    return [(label, [f"{video}:{start}".encode() for video, start in listed]) for label, listed in lists.items()]


def truth_of(ratings, dense=False):
    videos, labels, starts, values = zip(*ratings, strict=True)
    return Truth.from_arrays(videos, labels, starts, None if dense else values)


def random_case(seed):
    """Lists and ratings of 12 labels: some labels absent, unrated or without a positive, some ratings repeated."""
    generator = np.random.default_rng(seed)
    segments = [(f"v{row}", 5 * place) for row in range(9) for place in range(8)]
    lists, ratings = {}, []
    for label in range(12):
        if generator.random() < 0.8:
            chosen = generator.permutation(len(segments))[: generator.integers(0, len(segments) + 1)]
            lists[label] = [segments[position] for position in chosen]
        if generator.random() < 0.85:
            rate = generator.choice([0.0, 0.3, 0.7, 1.0])
            for position in generator.integers(0, len(segments), generator.integers(1, 40)):
                ratings.append((segments[position][0], label, segments[position][1], int(generator.random() < rate)))
    ratings.append(("v0", 3, 0, 1))
    return lists, ratings


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("dense", [False, True])
def test_map_equals_a_plain_loop(tmp_path, seed, dense):
    lists, ratings = random_case(seed)
    if dense:
        ratings = [rating for rating in ratings if rating[3]]
    for k in (1, 7, 20, 100_000):
        expected, by_class = slow_map(lists, ratings, k, dense)
        truth = truth_of(ratings, dense)
        score = map_at_k(as_bytes(lists), truth, k)
        assert score.mean_average_precision == pytest.approx(expected, abs=1e-12)
        assert score.average_precisions == pytest.approx(by_class, abs=1e-12)
        assert score.num_classes == len(by_class)
        assert score.num_absent == len(by_class.keys() - lists.keys())
        assert score.num_ignored == len(lists.keys() - by_class.keys())
        assert score.num_listed == {label: len(lists.get(label, [])[:k]) for label in sorted(by_class)}
    loaded = Truth.from_csv(write_ratings_csv(tmp_path / "truth.csv", ratings, 3 if dense else 4), dense)
    assert (loaded.ratings, loaded.is_dense) == (truth.ratings, dense)
    assert loaded.num_repeated == len(ratings) - len({r[:3] for r in ratings})


@pytest.mark.parametrize("seed", range(5))
def test_map_equals_scikit_learn_if_all_segments_are_listed_and_rated(tmp_path, seed):
    generator = np.random.default_rng(seed)
    n, c = 210, 6
    segments = make_segments([f"id{row}" for row in range(30)], 7, first_start=30)
    probabilities = generator.random((n, c), np.float32)
    positive = generator.random((n, c)) < generator.random(c)
    positive[0] = True
    expected = [average_precision_score(positive[:, j], probabilities[:, j]) for j in range(c)]

    ranker = TopK(c, n, segments)
    ranker.update(np.arange(n), probabilities)
    ranking = ranker.result()
    label_ids = np.array([40, 3, 17, 0, 99, 5])
    vocabulary = Vocabulary(label_ids, ("",) * c)
    path = tmp_path / "submission.csv"
    write_submission(path, ranking, vocabulary)
    rows, classes = (places.ravel() for places in np.indices((n, c)))
    ids = [segments.video_ids[row] for row in segments.rows[rows]]
    truth = Truth.from_arrays(ids, label_ids[classes], segments.start_seconds[rows], positive[rows, classes])
    score = map_at_k(path, truth, vocabulary=vocabulary)
    assert [score.average_precisions[label_id] for label_id in label_ids] == pytest.approx(expected, abs=1e-9)
    assert score.mean_average_precision == pytest.approx(np.mean(expected), abs=1e-9)
    assert list(score.num_positives.values()) == positive.sum(0)[np.argsort(label_ids)].tolist()
    hashes = segment_hashes(segments.video_ids, segments.rows, segments.start_seconds)
    direct = map_from_probabilities(probabilities, hashes, rows, classes, positive[rows, classes])
    assert direct == pytest.approx(np.mean(expected), abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_map_from_probabilities_equals_the_score_of_a_full_ranking_with_ties(seed):
    generator = np.random.default_rng(seed)
    n, c, m = 60, 5, 120
    segments = make_segments([f"id{row}" for row in range(10)], 6, first_start=30)
    # Few distinct values give many ties; few pairs give repeated and contradictory ratings.
    probabilities = generator.integers(0, 4, (n, c)).astype(np.float32) / 3
    rows, classes = generator.integers(0, n, m), generator.integers(0, c - 1, m)
    values = generator.random(m) < 0.5
    values[classes == 2] = False
    ranker = TopK(c, n, segments)
    ranker.update(np.arange(n), probabilities)
    vocabulary = Vocabulary(np.arange(c), ("",) * c)
    ids = [segments.video_ids[row] for row in segments.rows[rows]]
    truth = Truth.from_arrays(ids, classes, segments.start_seconds[rows], values)
    expected = map_at_k(ranked_segments(ranker.result(), vocabulary), truth).mean_average_precision
    hashes = segment_hashes(segments.video_ids, segments.rows, segments.start_seconds)
    order = generator.permutation(m)
    direct = map_from_probabilities(probabilities, hashes, rows[order], classes[order], values[order])
    assert direct == pytest.approx(expected, abs=1e-12)
    # One row per rating gives the same result as one row per segment.
    repeated = map_from_probabilities(probabilities[rows], hashes[rows], np.arange(m), classes, values)
    assert repeated == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_examples_computed_by_hand():
    assert average_precision([True, False, True], 2) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision([False, False, True], 4) == pytest.approx(1 / 3 / 4)
    assert average_precision([False, False], 1) == 0
    assert average_precision([], 3) == 0
    assert average_precision([True, True], 2) == 1


def test_lists_are_cut_before_unrated_segments_are_dropped():
    truth = truth_of([("a", 1, 0, 1), ("a", 1, 5, 0), ("a", 1, 10, 1)])
    listed = [("x", 0), ("a", 0), ("x", 5), ("a", 5), ("a", 10)]
    # With k = 4, x:0 and x:5 occupy two places but are not false positives, and a:10 is cut off.
    assert map_at_k(as_bytes({1: listed}), truth, 4).mean_average_precision == pytest.approx((1 / 1) / 2)
    assert map_at_k(as_bytes({1: listed}), truth, 5).mean_average_precision == pytest.approx((1 + 2 / 3) / 2)


def test_omitting_a_class_does_not_raise_the_score():
    truth = truth_of([("a", 1, 0, 1), ("a", 2, 0, 1), ("a", 2, 5, 0), ("a", 3, 0, 0)])
    both = map_at_k(as_bytes({1: [("a", 0)], 2: [("a", 5), ("a", 0)]}), truth)
    assert both.mean_average_precision == pytest.approx((1 + 0.5) / 2)
    assert (both.num_classes, both.num_absent, both.num_ignored) == (2, 0, 0)
    one = map_at_k(as_bytes({1: [("a", 0)], 3: [("a", 0)], 9: [("b", 0)]}), truth)
    assert one.mean_average_precision == pytest.approx(1 / 2)
    assert (one.num_classes, one.num_absent, one.num_ignored) == (2, 1, 2)
    assert one.average_precisions == {1: 1.0, 2: 0.0}


def test_repeated_ratings_count_once_and_contradictory_ones_are_positive():
    ratings = [
        ("a", 1, 0, 1),
        ("a", 1, 0, 1),
        ("a", 1, 5, 0),
        ("a", 1, 5, 1),
        ("a", 1, 5, 0),
        ("a", 1, 10, 0),
    ]
    truth = truth_of(ratings)
    assert truth.ratings == {1: {b"a:0": True, b"a:5": True, b"a:10": False}}
    assert (truth.num_repeated, truth.num_contradictory) == (3, 1)
    score = map_at_k(as_bytes({1: [("a", 10), ("a", 5), ("a", 0)]}), truth)
    assert score.mean_average_precision == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_segments_missing_from_a_dense_truth_are_negatives():
    ratings = [("a", 1, 0, 1), ("a", 1, 5, 1)]
    lists = as_bytes({1: [("z", 0), ("a", 5), ("z", 5), ("a", 0)]})
    assert map_at_k(lists, truth_of(ratings)).mean_average_precision == 1
    assert map_at_k(lists, truth_of(ratings, dense=True)).mean_average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_invalid_lists_are_refused(tmp_path):
    truth = truth_of([("a", 1, 0, 1)])
    vocabulary = Vocabulary(np.array([1, 2]), ("", ""))
    with pytest.raises(Yt8mError, match=r"Class 1 .* b'b:0' more than once"):
        map_at_k([(1, [b"a:0", b"b:0", b"b:0"])], truth)
    with pytest.raises(Yt8mError, match="Class 1 occurs twice"):
        map_at_k([(1, [b"a:0"]), (1, [b"b:0"])], truth)
    with pytest.raises(Yt8mError, match="names the class 7, which is not"):
        map_at_k([(7, [b"a:0"])], truth, vocabulary=vocabulary)
    with pytest.raises(Yt8mError, match="truth rates the label 7, which is not a class"):
        map_at_k([(1, [b"a:0"])], truth_of([("a", 7, 0, 0), ("a", 1, 0, 1)]), vocabulary=vocabulary)
    with pytest.raises(UsageError, match="K of at least 1, found 0"):
        map_at_k([(1, [b"a:0"])], truth, 0)
    path = tmp_path / "submission.csv"
    path.write_text("Class,Segments\n1,a:0 a:0\n")
    with pytest.raises(Yt8mError, match=r"line 2: segment 2 of class 1 is 'a:0'; the class lists it more than once"):
        map_at_k(path, truth)
    path.write_text("Class,Segments\n7,a:0\n")
    with pytest.raises(Yt8mError, match="line 2: 7 is not a class of the vocabulary"):
        map_at_k(path, truth, vocabulary=vocabulary)


def test_a_truth_without_positives_is_refused():
    with pytest.raises(Yt8mError, match="no positive rating"):
        map_at_k([], truth_of([("a", 1, 0, 0)]))
    probabilities, hashes = np.full((1, 1), 0.5, np.float32), np.zeros(1, np.uint64)
    with pytest.raises(Yt8mError, match="no positive rating"):
        map_from_probabilities(probabilities, hashes, [0], [0], [0])
    with pytest.raises(Yt8mError, match="not a number"):
        map_from_probabilities(probabilities * np.nan, hashes, [0], [0], [1])


def test_class_scores_are_written_as_a_table(tmp_path):
    truth = truth_of([("a", 30, 0, 1), ("a", 4, 0, 1), ("a", 4, 5, 1), ("a", 5, 0, 0)])
    score = map_at_k(as_bytes({30: [("b", 0), ("a", 0)], 5: [("a", 0)]}), truth)
    vocabulary = Vocabulary(np.array([30, 4, 5]), ("Guitar, electric", "Car", "Game"))
    path = tmp_path / "classes.csv"
    write_class_scores(path, score, vocabulary)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["class_id", "name", "ap", "positives", "listed"],
            ["4", "Car", "0.000000", "2", "0"],
            ["30", "Guitar, electric", "1.000000", "1", "2"],
        ]
    write_class_scores(path, score)
    assert path.read_text().splitlines()[1] == "4,,0.000000,2,0"


def test_the_score_can_be_written_as_json():
    truth = truth_of([("a", 30, 0, 1), ("a", 4, 0, 1), ("a", 4, 0, 0), ("a", 5, 0, 0)])
    score = map_at_k(as_bytes({30: [("b", 0), ("a", 0)], 5: [("a", 0)]}), truth)
    assert json.loads(json.dumps(asdict(score))) == {
        "mean_average_precision": 0.5,
        "average_precisions": {"4": 0.0, "30": 1.0},
        "num_positives": {"4": 1, "30": 1},
        "num_listed": {"4": 0, "30": 2},
        "num_absent": 1,
        "num_ignored": 1,
        "num_repeated_ratings": 1,
        "num_contradictory_ratings": 1,
        "is_dense": False,
        "k": 100_000,
        "little_overlap": None,
    }


@pytest.mark.parametrize(("num_listed", "expected"), [(0, (0, 5)), (1, (1, 5)), (2, (2, 5)), (3, None), (5, None)])
def test_the_videos_of_the_truth_that_are_listed_are_counted(num_listed: int, expected: tuple[int, int] | None) -> None:
    truth = truth_of([(video, 1, 0, 1) for video in "abcde"])
    lists = {label: [(video, 55), ("other", 0)] for label, video in enumerate("abcde"[:num_listed], start=1)}
    # Any segment of a video counts, whatever its class and start.
    assert map_at_k(as_bytes(lists), truth).little_overlap == expected
