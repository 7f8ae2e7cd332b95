"""Submission files: written and read back, and each way to be invalid named by its line."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from yt8m.errors import UsageError, Yt8mError
from yt8m.prediction.segments import Segments
from yt8m.ranking.topk import Ranking, TopK
from yt8m.submission.submission import ranked_segments, read_submission, write_submission
from yt8m.vocabulary import Vocabulary


def make_vocabulary(*label_ids):
    return Vocabulary(np.array(label_ids, np.int64), tuple(f"name {label_id}" for label_id in label_ids))


def make_ranking(segments, num_classes, k, seed=0):
    ranker = TopK(num_classes, k, segments)
    probabilities = np.random.default_rng(seed).random((len(segments), num_classes))
    ranker.update(np.arange(len(segments)), probabilities)
    return ranker.result(), probabilities.astype(np.float32)


def test_the_file_is_exactly_as_specified(tmp_path):
    segments = Segments(["ab12", "x"], np.array([0, 0, 1, 1], np.int32), np.array([0, 5, 100, 1005], np.int32))
    ranker = TopK(2, 3, segments)
    ranker.update([0, 1, 2, 3], [[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    path = tmp_path / "out" / "submission.csv"
    write_submission(path, ranker.result(), make_vocabulary(30, 7))
    expected = b"Class,Segments\n30,x:1005 x:100 ab12:5\n7,ab12:0 ab12:5 x:100\n"
    assert path.read_bytes() == expected
    assert [p.name for p in path.parent.iterdir()] == ["submission.csv"]


def test_round_trip_equals_plain_joining(tmp_path):
    ids = ["-_9a", "日本語", "longer-id-of-a-video", "z"]
    starts = np.tile(np.arange(0, 500, 5, dtype=np.int32), len(ids))
    segments = Segments(ids, np.repeat(np.arange(len(ids), dtype=np.int32), 100), starts)
    ranking, probabilities = make_ranking(segments, 3, 150)
    vocabulary = make_vocabulary(5, 3861, 0)
    path = tmp_path / "submission.csv"
    write_submission(path, ranking, vocabulary)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "Class,Segments"
    for line, label_id, column in zip(lines[1:], [5, 3861, 0], probabilities.T, strict=True):
        best = np.argsort(-column)[:150]
        assert line == f"{label_id}," + " ".join(f"{ids[segments.rows[p]]}:{starts[p]}" for p in best)
    read = list(read_submission(path, vocabulary))
    assert [label_id for label_id, _ in read] == [5, 3861, 0]
    assert read == list(ranked_segments(ranking, vocabulary))
    assert [b" ".join(listed).decode() for _, listed in read] == [line.partition(",")[2] for line in lines[1:]]


def test_a_class_without_segments_round_trips(tmp_path):
    empty = Segments([], np.empty(0, np.int32), np.empty(0, np.int32))
    path = tmp_path / "submission.csv"
    write_submission(path, TopK(2, 5, empty).result(), make_vocabulary(4, 2))
    assert path.read_bytes() == b"Class,Segments\n4,\n2,\n"
    assert list(read_submission(path)) == [(4, []), (2, [])]


def test_writing_refuses_another_number_of_classes_and_too_many_segments(tmp_path):
    segments = Segments(["ab"], np.zeros(2, np.int32), np.array([0, 5], np.int32))
    ranking, _ = make_ranking(segments, 2, 5)
    with pytest.raises(ValueError, match="2 classes, the vocabulary 3"):
        write_submission(tmp_path / "s.csv", ranking, make_vocabulary(1, 2, 3))
    with pytest.raises(ValueError, match="at most 100000"):
        write_submission(tmp_path / "s.csv", Ranking(segments, (np.zeros(100_001, np.uint64),)), make_vocabulary(1))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_former_file_and_nothing_else(tmp_path, monkeypatch):
    segments = Segments(["ab"], np.zeros(2, np.int32), np.array([0, 5], np.int32))
    ranking, _ = make_ranking(segments, 2, 5)
    path = tmp_path / "s.csv"
    path.write_bytes(b"former")

    def fail_at_the_second_class(self, class_index):
        if class_index == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return np.array([0], np.int32)

    monkeypatch.setattr(Ranking, "positions", fail_at_the_second_class)
    with pytest.raises(Yt8mError, match="no space left"):
        write_submission(path, ranking, make_vocabulary(1, 2))
    assert path.read_bytes() == b"former"
    assert [p.name for p in tmp_path.iterdir()] == ["s.csv"]


HEADER = b"Class,Segments\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"line 1: expected the header 'Class,Segments', found ''"),
        (b"3,ab:5\n", r"line 1: expected the header .* found '3,ab:5'"),
        (b"\xff" * 5000, r"line 1: expected the header .* found '\ufffd{40}\.\.\."),
        (HEADER, r"holds no class"),
        (HEADER + b"3,ab:5\n4,ab:5\n3,cd:5\n", r"line 4: class 3 occurs a second time, after line 2"),
        (HEADER + b"3,ab:5\n12,ab:5\n", r"line 3: 12 is not a class of the vocabulary"),
        (HEADER + b"3,ab:5\n\n4,ab:5 cd:10 ab:5\n", r"line 4: class 4 lists segment 'ab:5' more than once"),
        (HEADER + b"ab:5 cd:5\n", r"line 2: expected a class id, a comma and segments, found 'ab:5 cd:5'"),
        (HEADER + b"-3,ab:5\n", r"line 2: expected a class id"),
        (HEADER + "٣,ab:5\n".encode(), r"line 2: expected a class id"),
        (HEADER + b"9" * 5000 + b",ab:5\n", r"line 2: expected a class id"),
        (HEADER + b"3,ab:5 cd\n", r"line 2: segment 2 of class 3 is 'cd'; expected 'video:start'"),
        (HEADER + b"3,ab:5 cd:7\n", r"segment 2 of class 3 is 'cd:7'.* multiple of 5"),
        (HEADER + b"3,ab:-5\n", r"segment 1 of class 3 is 'ab:-5'"),
        (HEADER + b"3,ab:5.0\n", r"segment 1 of class 3 is 'ab:5.0'"),
        (HEADER + b"3,ab:05\n", r"segment 1 of class 3 is 'ab:05'"),
        (HEADER + b"3,ab:\n", r"segment 1 of class 3 is 'ab:'"),
        (HEADER + b"3,:5\n", r"segment 1 of class 3 is ':5'"),
        (HEADER + b"3,a:b:5\n", r"segment 1 of class 3 is 'a:b:5'"),
        (HEADER + b"3,ab:5,cd:5\n", r"segment 1 of class 3 is 'ab:5,cd:5'"),
        (HEADER + b"3,ab:5  cd:5\n", r"segment 2 of class 3 is ''; .*single spaces"),
        (HEADER + b"3,ab:5 \n", r"segment 2 of class 3 is ''"),
        (HEADER + b"3,ab:5 " + b"x" * 100 + b"\n", r"segment 2 of class 3 is 'x{40}\.\.\.'"),
        (HEADER + b"3,ab:5 c\xff:10\n", r"line 2: byte 8 of the line is not UTF-8"),
    ],
)
def test_each_invalid_file_gets_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "submission.csv"
    path.write_bytes(content)
    with pytest.raises(Yt8mError, match=rf"^{path}.*{sentence}"):
        list(read_submission(path, make_vocabulary(3, 4)))


def test_a_class_may_list_100_000_segments_and_no_more(tmp_path):
    path = tmp_path / "submission.csv"
    listed = [f"v{row}:{5 * place}" for row in range(1000) for place in range(100)]
    path.write_text("Class,Segments\n3," + " ".join(listed) + "\n")
    ((_, read),) = read_submission(path)
    assert [segment.decode() for segment in read] == listed
    path.write_text("Class,Segments\n3," + " ".join([*listed, "more:0"]) + "\n")
    with pytest.raises(Yt8mError, match=r"line 2: class 3 lists 100,001 segments; at most 100,000"):
        list(read_submission(path))


def test_starts_on_the_grid_line_ends_and_any_class_without_a_vocabulary(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_bytes(b"Class,Segments\r\n99,a:0 a:5 a:10 a:15 a:100 a:3605\r\n\r\n7,a:0")
    starts = [0, 5, 10, 15, 100, 3605]
    assert list(read_submission(path)) == [(99, [b"a:%d" % start for start in starts]), (7, [b"a:0"])]


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="there is no such file"):
        list(read_submission(tmp_path / "nothing.csv"))
    with pytest.raises(UsageError, match="cannot be read as a submission"):
        list(read_submission(tmp_path))
