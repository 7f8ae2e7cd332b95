"""Invented sources: classes are learnable from clean features, less so from one noisy frame."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from yt8m.dataset.indexing import NUM_LABELS
from yt8m.synthetic.invented import BACKGROUND_LABEL, TOPICS, invented_sources, invented_vocabulary
from yt8m.synthetic.splice import NOISE_STD


def test_the_vocabulary_has_unique_unsorted_label_ids_and_unique_names() -> None:
    vocabulary = invented_vocabulary()
    ids = vocabulary.label_ids.tolist()
    assert list(vocabulary.names) == [name for names in TOPICS.values() for name in names]
    assert len(set(ids)) == len(ids) == len(set(vocabulary.names))
    assert ids != sorted(ids)
    assert 0 <= min(ids) <= max(ids) < NUM_LABELS
    assert BACKGROUND_LABEL not in ids
    assert BACKGROUND_LABEL < NUM_LABELS
    assert vocabulary.digest == invented_vocabulary(0).digest != invented_vocabulary(1).digest


def test_the_same_seed_gives_the_same_sources() -> None:
    vocabulary = invented_vocabulary()
    first, again, other = (invented_sources(50, vocabulary, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.means, again.means)
    assert [labels.tolist() for labels in first.labels] == [labels.tolist() for labels in again.labels]
    assert not np.array_equal(first.means, other.means)


def test_sources_have_one_to_three_classes_of_one_topic() -> None:
    vocabulary = invented_vocabulary()
    sources = invented_sources(2000, vocabulary)
    assert (sources.means.shape, sources.means.dtype) == ((2000, 1152), np.float32)
    # The mean standard deviation of a feature over 300 real videos (shard validate0003) is 0.484.
    assert sources.means.std(0).mean() == pytest.approx(0.484, rel=0.15)
    topic_of = {name: topic for topic, names in TOPICS.items() for name in names}
    name_of = dict(zip(vocabulary.label_ids.tolist(), vocabulary.names, strict=True))
    numbers: Counter[int] = Counter()
    occurrences: Counter[str] = Counter()
    background = 0
    for labels in sources.labels:
        assert len(set(labels.tolist())) == len(labels)
        names = [name_of[label] for label in labels.tolist() if label != BACKGROUND_LABEL]
        assert len({topic_of[name] for name in names}) == 1
        numbers[len(names)] += 1
        occurrences.update(names)
        background += BACKGROUND_LABEL in labels
    assert set(numbers) == {1, 2, 3}
    assert numbers[1] > numbers[2] > numbers[3] > 100
    assert 500 < background < 700
    assert set(occurrences) == set(vocabulary.names)
    # Within a topic, classes are listed from common to rare.
    for names in TOPICS.values():
        assert occurrences[names[0]] > 2 * occurrences[names[-1]]


def test_classes_are_predicted_better_from_clean_features_than_from_one_noisy_frame() -> None:
    vocabulary = invented_vocabulary()
    sources = invented_sources(6000, vocabulary)
    truth = np.zeros((6000, len(vocabulary)))
    for row, labels in enumerate(sources.labels):
        columns = vocabulary.class_indices(labels)
        truth[row, columns[columns >= 0]] = 1
    single = truth.sum(1) == 1
    train, held_out = slice(0, 4500), np.flatnonzero(single)[np.flatnonzero(single) >= 4500]
    noise = NOISE_STD * np.random.default_rng(0).standard_normal((6000, 1152))

    def accuracy(features: np.ndarray) -> float:
        """Accuracy of ridge regression on held-out sources with one class."""
        x = features[train].astype(np.float64)
        weights = np.linalg.solve(x.T @ x + 100 * np.eye(1152), x.T @ truth[train])
        return float((truth[held_out].argmax(1) == (features[held_out] @ weights).argmax(1)).mean())

    clean, noisy = accuracy(sources.means), accuracy(sources.means + noise)
    largest_class = truth[train].mean(0).max()
    assert clean > 5 * largest_class
    assert clean > noisy + 0.02
