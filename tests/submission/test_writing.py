"""Write submissions and read them back."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from tests.support.rankings import make_ranking, make_segments, make_vocabulary
from yt8m.errors import Yt8mError
from yt8m.prediction.segments import Segments
from yt8m.ranking.topk import Ranking, TopK
from yt8m.submission.format import read_submission
from yt8m.submission.writing import ranked_segments, write_submission


def test_bytes_of_a_small_submission(tmp_path: Path) -> None:
    segments = Segments(["ab12", "x"], np.array([0, 0, 1, 1], np.int32), np.array([0, 5, 100, 1005], np.int32))
    ranker = TopK(2, 3, segments)
    ranker.update([0, 1, 2, 3], [[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    path = tmp_path / "out" / "submission.csv"
    write_submission(path, ranker.result(), make_vocabulary(30, 7))
    expected = b"Class,Segments\n30,x:1005 x:100 ab12:5\n7,ab12:0 ab12:5 x:100\n"
    assert path.read_bytes() == expected
    assert [p.name for p in path.parent.iterdir()] == ["submission.csv"]


def test_a_submission_equals_plain_joining_and_round_trips(tmp_path: Path) -> None:
    ids = ["-_9a", "日本語", "longer-id-of-a-video", "z"]
    segments = make_segments(ids, 100)
    ranking, probabilities = make_ranking(segments, 3, 150)
    vocabulary = make_vocabulary(5, 3861, 0)
    path = tmp_path / "submission.csv"
    write_submission(path, ranking, vocabulary)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "Class,Segments"
    for line, label_id, column in zip(lines[1:], [5, 3861, 0], probabilities.T, strict=True):
        best = np.argsort(-column)[:150]
        assert line == f"{label_id}," + " ".join(f"{ids[segments.rows[p]]}:{segments.start_seconds[p]}" for p in best)
    read = list(read_submission(path, vocabulary))
    assert [label_id for label_id, _ in read] == [5, 3861, 0]
    assert read == list(ranked_segments(ranking, vocabulary))
    assert [b" ".join(listed).decode() for _, listed in read] == [line.partition(",")[2] for line in lines[1:]]


def test_a_class_without_segments_round_trips(tmp_path: Path) -> None:
    empty = Segments([], np.empty(0, np.int32), np.empty(0, np.int32))
    path = tmp_path / "submission.csv"
    write_submission(path, TopK(2, 5, empty).result(), make_vocabulary(4, 2))
    assert path.read_bytes() == b"Class,Segments\n4,\n2,\n"
    assert list(read_submission(path)) == [(4, []), (2, [])]


def test_a_wrong_number_of_classes_and_too_many_segments_are_refused(tmp_path: Path) -> None:
    segments = make_segments(["ab"], 2)
    ranking, _ = make_ranking(segments, 2, 5)
    with pytest.raises(ValueError, match="2 classes, the vocabulary 3"):
        write_submission(tmp_path / "s.csv", ranking, make_vocabulary(1, 2, 3))
    with pytest.raises(ValueError, match="at most 100000"):
        write_submission(tmp_path / "s.csv", Ranking(segments, (np.zeros(100_001, np.uint64),)), make_vocabulary(1))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = make_segments(["ab"], 2)
    ranking, _ = make_ranking(segments, 2, 5)
    path = tmp_path / "s.csv"
    path.write_bytes(b"previous")

    def fail_at_the_second_class(self: Ranking, class_index: int) -> np.ndarray:
        if class_index == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return np.array([0], np.int32)

    monkeypatch.setattr(Ranking, "positions", fail_at_the_second_class)
    with pytest.raises(Yt8mError, match="no space left"):
        write_submission(path, ranking, make_vocabulary(1, 2))
    assert path.read_bytes() == b"previous"
    assert [p.name for p in tmp_path.iterdir()] == ["s.csv"]
