"""Write a ranking as a Parquet table and read it back with pyarrow."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.full_disk import FullDisk
from tests.support.rankings import make_ranking, make_segments
from yt8m.errors import Yt8mError
from yt8m.prediction.segments import Segments
from yt8m.ranking.calibration import Calibration
from yt8m.ranking.topk import Ranking, TopK
from yt8m.submission.format import read_submission
from yt8m.submission.table import RankingTable, write_table
from yt8m.submission.writing import write_submission
from yt8m.vocabulary import Vocabulary

COLUMNS = {
    "class": "int32",
    "name": "dictionary<values=string, indices=int32, ordered=0>",
    "video": "dictionary<values=string, indices=int32, ordered=0>",
    "start": "int32",
    "score": "float",
}


def rows_of(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_rows_and_columns_of_a_small_table(tmp_path: Path) -> None:
    segments = Segments(["ab12", "日本"], np.array([0, 0, 1], np.int32), np.array([0, 5, 1005], np.int32))
    ranker = TopK(2, 2, segments)
    ranker.update([0, 1, 2], [[0.25, 0.5], [0.75, 0.125], [0.5, 1.0]])
    path = tmp_path / "new" / "table.parquet"
    write_table(path, ranker.result(), Vocabulary(np.array([30, 7]), ("Surfing", "Ski, Alpine")))
    names = ("class", "name", "video", "start", "score")
    expected = [
        (30, "Surfing", "ab12", 5, 0.75),
        (30, "Surfing", "日本", 1005, 0.5),
        (7, "Ski, Alpine", "日本", 1005, 1.0),
        (7, "Ski, Alpine", "ab12", 0, 0.5),
    ]
    assert rows_of(path) == [dict(zip(names, row, strict=True)) for row in expected]
    assert {field.name: str(field.type) for field in pq.read_schema(path)} == COLUMNS
    assert [p.name for p in path.parent.iterdir()] == ["table.parquet"]


@pytest.mark.parametrize("rows_per_group", [1, 100, 10**6])
def test_rows_equal_a_full_sort_and_the_submission(tmp_path: Path, rows_per_group: int) -> None:
    segments = make_segments(["-_9a", "日本語", "longer-id-of-a-video", "z"], 30)
    ranking, probabilities = make_ranking(segments, 5, 60)
    # Two classes have the same name, and one has none.
    vocabulary = Vocabulary(np.array([5, 3861, 0, 9, 8]), ("a", "b", "a", "", "é"))
    path = tmp_path / "table.parquet"
    write_table(path, ranking, vocabulary, rows_per_group)
    expected = []
    for label_id, name, column in zip(vocabulary.label_ids.tolist(), vocabulary.names, probabilities.T, strict=True):
        for place in np.argsort(-column)[:60].tolist():
            video, start = segments.video_ids[segments.rows[place]], int(segments.start_seconds[place])
            expected.append((label_id, name, video, start, float(column[place])))
    assert [tuple(row.values()) for row in rows_of(path)] == expected
    groups = pq.ParquetFile(path)
    assert groups.num_row_groups == {1: 5, 100: 3, 10**6: 1}[rows_per_group]
    # Each row group has its own dictionaries, so it can be read separately.
    alone = [row for number in range(groups.num_row_groups) for row in groups.read_row_group(number).to_pylist()]
    assert alone == rows_of(path)

    write_submission(tmp_path / "submission.csv", ranking, vocabulary)
    listed: dict[int, list[bytes]] = {}
    for row in rows_of(path):
        listed.setdefault(row["class"], []).append(f"{row['video']}:{row['start']}".encode())
    assert listed == dict(read_submission(tmp_path / "submission.csv"))


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    empty = Segments([], np.empty(0, np.int32), np.empty(0, np.int32))
    write_table(tmp_path / "table.parquet", TopK(2, 5, empty).result(), Vocabulary(np.array([4, 2]), ("x", "y")))
    assert rows_of(tmp_path / "table.parquet") == []
    assert {field.name: str(field.type) for field in pq.read_schema(tmp_path / "table.parquet")} == COLUMNS


def test_a_calibrated_table_has_probabilities_in_the_same_order(tmp_path: Path) -> None:
    ranking, scores = make_ranking(make_segments(["a", "b"], 30), 3, 60)
    vocabulary = Vocabulary(np.array([5, 8, 2]), ("x", "y", "z"))
    calibration = Calibration(low=1.5, high=0.5, offset=-1, ensemble="", num_ratings=9)
    write_table(tmp_path / "s.parquet", ranking, vocabulary)
    write_table(tmp_path / "p.parquet", ranking, vocabulary, calibration=calibration)
    of_scores, of_probabilities = rows_of(tmp_path / "s.parquet"), rows_of(tmp_path / "p.parquet")
    assert {field.name for field in pq.read_schema(tmp_path / "p.parquet")} == (COLUMNS.keys() - {"score"}) | {
        "probability"
    }
    expected = [1 / (1 + (1 - s) ** 0.5 / s**1.5 * np.e) for s in (row.pop("score") for row in of_scores)]
    assert [row.pop("probability") for row in of_probabilities] == pytest.approx(expected, rel=1e-5)
    assert of_scores == of_probabilities
    for name, is_calibrated in (("s", False), ("p", True)):
        table = RankingTable.open(tmp_path / f"{name}.parquet")
        assert table.is_calibrated == is_calibrated
        listed = table.segments(1).probabilities
        assert listed.tolist() == sorted(listed.tolist(), reverse=True)
        assert (listed.tolist() == np.sort(scores[:, 1])[::-1].tolist()) != is_calibrated


def test_a_wrong_number_of_classes_is_refused(tmp_path: Path) -> None:
    ranking, _ = make_ranking(make_segments(["a"], 3), 2, 3)
    with pytest.raises(ValueError, match="2 classes, the vocabulary 1"):
        write_table(tmp_path / "table.parquet", ranking, Vocabulary(np.array([4]), ("x",)))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_keeps_the_previous_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.parquet"
    path.write_bytes(b"previous")
    ranking, _ = make_ranking(make_segments(["a"], 3), 2, 3)

    def fail_at_the_second_class(self: Ranking, class_index: int) -> np.ndarray:
        if class_index == 1:
            raise OSError(errno.EIO, "unplugged")
        return np.array([0.5, 0.5, 0.5], np.float32)

    monkeypatch.setattr(Ranking, "probabilities", fail_at_the_second_class)
    with pytest.raises(OSError, match="unplugged"):
        write_table(path, ranking, Vocabulary(np.array([4, 2]), ("x", "y")), rows_per_group=1)
    assert path.read_bytes() == b"previous"
    assert [p.name for p in tmp_path.iterdir()] == ["table.parquet"]


def test_a_full_disk_leaves_no_partial_table(full_disk: FullDisk) -> None:
    ranking, _ = make_ranking(make_segments([f"{row:04d}" for row in range(100)], 40), 8, 4000)
    vocabulary = Vocabulary(np.arange(8), tuple("abcdefgh"))
    path = full_disk.folder / "table.parquet"
    full_disk.fill(leave=20_000)
    with pytest.raises(Yt8mError, match=rf"^{path}: no space left on the disk; "):
        write_table(path, ranking, vocabulary)
    assert {p.name for p in full_disk.folder.iterdir()} <= {"filler"}
    full_disk.free()
    write_table(path, ranking, vocabulary)
    assert pq.read_metadata(path).num_rows == 32_000


def test_row_groups_end_with_the_class_that_reaches_their_size(tmp_path: Path) -> None:
    ranking, _ = make_ranking(make_segments([f"{row}" for row in range(60)], 1), 50, 60)
    write_table(tmp_path / "t.parquet", ranking, Vocabulary(np.arange(50), ("n",) * 50), rows_per_group=100)
    groups = pq.ParquetFile(tmp_path / "t.parquet").metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [120] * 25


# --- Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_per_group", [1, 100, 10**6])
@pytest.mark.parametrize("written_by", ["yt8m", "another program"])
def test_a_class_is_read_without_the_others(tmp_path: Path, rows_per_group: int, written_by: str) -> None:
    ranking, _ = make_ranking(make_segments(["-_9a", "日本語", "z"], 30), 5, 60)
    vocabulary = Vocabulary(np.array([5, 3861, 0, 9, 8]), ("a", "b", "a", "", "é"))
    path = tmp_path / "table.parquet"
    write_table(path, ranking, vocabulary, rows_per_group)
    if written_by == "another program":
        table = pq.read_table(path)
        plain = table.cast(pa.schema([(f.name, getattr(f.type, "value_type", f.type)) for f in table.schema]))
        pq.write_table(plain.replace_schema_metadata(None), path, row_group_size=70)
        # Classes are listed in the order of their ids within a row group.
        assert sorted(RankingTable.open(path).vocabulary.label_ids.tolist()) == [0, 5, 8, 9, 3861]
    else:
        found = RankingTable.open(path)
        assert (found.vocabulary.label_ids.tolist(), found.vocabulary.names) == ([5, 3861, 0, 9, 8], vocabulary.names)
        assert len({tuple(groups) for groups in found.row_groups}) == {1: 5, 100: 3, 10**6: 1}[rows_per_group]
    opened = RankingTable.open(path)
    for class_index, label_id in enumerate(vocabulary.label_ids.tolist()):
        place = opened.vocabulary.label_ids.tolist().index(label_id)
        assert opened.vocabulary.names[place] == vocabulary.names[class_index]
        listed = opened.segments(place)
        positions = ranking.positions(class_index)
        names = [ranking.segments.name(position) for position in positions]
        assert [
            f"{listed.video_ids[row]}:{start}" for row, start in zip(listed.rows, listed.start_seconds, strict=True)
        ] == names
        np.testing.assert_array_equal(listed.probabilities, ranking.probabilities(class_index))


def test_classes_without_rows_can_be_read(tmp_path: Path) -> None:
    empty = Segments([], np.empty(0, np.int32), np.empty(0, np.int32))
    # A name that is no text.
    path = tmp_path / os.fsdecode(b"caf\xe9.parquet")
    write_table(path, TopK(2, 5, empty).result(), Vocabulary(np.array([4, 2]), ("x", "y")))
    table = RankingTable.open(path)
    assert table.vocabulary.names == ("x", "y")
    assert len(table.segments(1)) == 0
