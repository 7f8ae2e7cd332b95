"""Ground truth from CSV files, arrays and rated shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_shards import TinyVideo, random_videos, write_shards
from tests.support.truth import write_ratings_csv
from yt8m.dataset.catalog import FILE_NAME
from yt8m.dataset.indexing import index_folder
from yt8m.errors import UsageError, Yt8mError
from yt8m.scoring.truth import POSITIVES_FILE, RATINGS_FILE, GroundTruth, Truth, load_truth
from yt8m.vocabulary import Vocabulary

LABEL_IDS = (3, 5, 8, 13)


@pytest.fixture(scope="module")
def videos() -> list[TinyVideo]:
    return random_videos(6, ratings_per_video=7, label_ids=LABEL_IDS, num_frames=(70, 99))


@pytest.fixture
def folder(tmp_path: Path, videos: list[TinyVideo]) -> Path:
    write_shards(tmp_path / "rated", videos)
    return tmp_path / "rated"


def written_ratings(videos: list[TinyVideo], labels: tuple[int, ...] = LABEL_IDS) -> dict[int, dict[bytes, bool]]:
    """Ratings written to the shards: for each label, whether each rated segment is positive."""
    ratings: dict[int, dict[bytes, bool]] = {}
    for video in videos:
        for label, start, score in video.ratings:
            if label in labels:
                ratings.setdefault(label, {})[f"{video.id}:{start}".encode()] = score == 1.0
    return ratings


def test_truth_is_read_from_rated_shards(folder: Path, videos: list[TinyVideo]) -> None:
    truth = Truth.from_catalog(index_folder(folder))
    assert truth.ratings == written_ratings(videos)
    assert len(truth.ratings) == 4
    assert truth.num_repeated + sum(map(len, truth.ratings.values())) == 42
    assert not truth.is_dense


def test_ratings_outside_the_vocabulary_are_ignored(folder: Path, videos: list[TinyVideo]) -> None:
    vocabulary = Vocabulary(np.array([13, 99, 3]), ("thirteen", "never", "three"))
    truth = Truth.from_catalog(index_folder(folder), vocabulary)
    assert truth.ratings == written_ratings(videos, (3, 13))


def test_a_folder_without_catalog_is_indexed(folder: Path, videos: list[TinyVideo]) -> None:
    assert load_truth(folder).ratings == written_ratings(videos)
    assert (folder / FILE_NAME).is_file()


def test_shards_without_ratings_are_refused(tmp_path: Path, folder: Path) -> None:
    write_shards(tmp_path / "unrated", random_videos(3))
    with pytest.raises(UsageError, match="found no ratings to score against in its 3 videos"):
        load_truth(tmp_path / "unrated")
    with pytest.raises(UsageError, match="found no ratings to score against in its 6 videos"):
        load_truth(folder, vocabulary=Vocabulary(np.array([99]), ("never",)))


def test_a_folder_is_refused_as_dense_truth(folder: Path) -> None:
    with pytest.raises(UsageError, match="a dense truth is a CSV file with the columns video,label,start"):
        load_truth(folder, dense=True)


def test_csv_files_contain_ratings_or_a_dense_truth(tmp_path: Path) -> None:
    ratings, positives = tmp_path / "ratings.csv", tmp_path / "positives.csv"
    ratings.write_text("video,label,start,score\naaaa,3,35,1\naaaa,3,40,0\n")
    positives.write_text("video,label,start\naaaa,3,35\n")
    rated, dense = load_truth(ratings), load_truth(positives, dense=True)
    assert (rated.ratings, rated.is_dense) == ({3: {b"aaaa:35": True, b"aaaa:40": False}}, False)
    assert (dense.ratings, dense.is_dense) == ({3: {b"aaaa:35": True}}, True)
    with pytest.raises(Yt8mError, match="has a column 'score'"):
        load_truth(ratings, dense=True)
    with pytest.raises(Yt8mError, match="expected a header with the columns video,label,start,score"):
        load_truth(positives)
    with pytest.raises(UsageError, match="there is no such file"):
        load_truth(tmp_path / "absent.csv")


def test_video_ids_may_be_bytes() -> None:
    truth = Truth.from_arrays(np.array([b"ab", b"cdef"]), [1, 1], [0, 5], [1.0, 0.0])
    assert truth.ratings == {1: {b"ab:0": True, b"cdef:5": False}}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", r"line 1: expected a header with the columns video,label,start,score, found ''"),
        ("video,label,score\na,1,1\n", r"line 1: expected a header .* found 'video,label,score'"),
        ("video,label,start\na,1,0\n", r"line 1: .* found 'video,label,start' .*dense truth"),
        ("video,label,start,score\n", r"contains no rows below its header"),
        ("video,label,start,score\na,1,0,1\n\na,1,0\n", r"line 4: expected at least 4 values, found 3"),
        ("video,label,start,score\n,1,0,1\n", r"line 2: the video id is empty"),
        ("video,label,start,score\na,one,0,1\n", r"line 2: expected a whole number as label, found 'one'"),
        ("video,label,start,score\na,-1,0,1\n", r"line 2: expected a whole number as label, found '-1'"),
        ("video,label,start,score\na,1,0,1\na,1,2.5,1\n", r"line 3: expected a start .* found '2.5'"),
        ("video,label,start,score\na,1,7,1\n", r"line 2: expected a start in seconds, a multiple of 5"),
        ("video,label,start,score\na,1,5,yes\n", r"line 2: expected a number as score, found 'yes'"),
        ("video,label,start,score\na,1,5,nan\n", r"line 2: expected a number as score, found 'nan'"),
    ],
)
def test_invalid_ratings_files_are_refused(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(content)
    with pytest.raises(Yt8mError, match=rf"^{path}.*{sentence}"):
        Truth.from_csv(path)


def test_ratings_are_refused_as_dense_truth(tmp_path: Path) -> None:
    path = write_ratings_csv(tmp_path / "truth.csv", [("a", 1, 0, 0)])
    with pytest.raises(Yt8mError, match="line 1: has a column 'score', so it contains ratings"):
        Truth.from_csv(path, dense=True)


def test_unreadable_truth_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        Truth.from_csv(tmp_path / "nothing.csv")
    with pytest.raises(UsageError, match="cannot be read as a CSV file"):
        Truth.from_csv(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"video,label,start,score\n\xff\xfe,1,5,1\n")
    with pytest.raises(Yt8mError, match="not a CSV file in UTF-8"):
        Truth.from_csv(tmp_path / "binary.csv")


def test_columns_may_be_in_any_order_and_others_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text("\ufeffscore,name,start,video,label\r\n0.0,Car,5,a,7\r\n1.0,Car,10,a,7\r\n", encoding="utf-8")
    assert Truth.from_csv(path).ratings == {7: {b"a:5": False, b"a:10": True}}


@pytest.mark.parametrize("name", [RATINGS_FILE, POSITIVES_FILE])
def test_a_truth_of_other_videos_is_refused_before_a_run(folder: Path, videos: list[TinyVideo], name: str) -> None:
    catalog, vocabulary = index_folder(folder), Vocabulary(np.array(LABEL_IDS), ("",) * len(LABEL_IDS))
    num_columns = 4 if name == RATINGS_FILE else 3
    path = write_ratings_csv(folder / name, [("none", 3, 30, 1), (videos[0].id, 3, 30, 1)], num_columns)
    assert GroundTruth.find(folder, catalog, vocabulary).is_known
    write_ratings_csv(path, [("none", 3, 30, 1)], num_columns)
    with pytest.raises(Yt8mError, match=rf"{name}: rates none of the 6 videos in {folder}; expected"):
        GroundTruth.find(folder, catalog, vocabulary)
