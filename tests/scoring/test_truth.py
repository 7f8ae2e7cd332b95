from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_shards import TinyVideo, random_videos, write_shards
from yt8m.dataset.catalog import FILE_NAME
from yt8m.dataset.indexing import index_folder
from yt8m.errors import UsageError, Yt8mError
from yt8m.scoring.truth import load_truth, truth_of_catalog
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
    """What the shards were written with: for each label, whether each rated segment is positive."""
    ratings: dict[int, dict[bytes, bool]] = {}
    for video in videos:
        for label, start, score in video.ratings:
            if label in labels:
                ratings.setdefault(label, {})[f"{video.id}:{start}".encode()] = score == 1.0
    return ratings


def test_rated_shards_are_a_truth(folder: Path, videos: list[TinyVideo]) -> None:
    truth = truth_of_catalog(index_folder(folder))
    assert truth.ratings == written_ratings(videos)
    assert len(truth.ratings) == 4
    assert truth.num_rows == 42
    assert not truth.is_dense


def test_ratings_outside_the_vocabulary_do_not_count(folder: Path, videos: list[TinyVideo]) -> None:
    vocabulary = Vocabulary(np.array([13, 99, 3]), ("thirteen", "never", "three"))
    truth = truth_of_catalog(index_folder(folder), vocabulary)
    assert truth.ratings == written_ratings(videos, (3, 13))


def test_a_folder_is_indexed_where_it_has_not_been(folder: Path, videos: list[TinyVideo]) -> None:
    assert load_truth(folder).ratings == written_ratings(videos)
    assert (folder / FILE_NAME).is_file()


def test_shards_without_ratings_are_no_truth(tmp_path: Path, folder: Path) -> None:
    write_shards(tmp_path / "unrated", random_videos(3))
    with pytest.raises(UsageError, match="its 3 videos carry no ratings to score against"):
        load_truth(tmp_path / "unrated")
    with pytest.raises(UsageError, match="its 6 videos carry no ratings to score against"):
        load_truth(folder, vocabulary=Vocabulary(np.array([99]), ("never",)))


def test_a_dense_truth_is_no_folder(folder: Path) -> None:
    with pytest.raises(UsageError, match="a dense truth is a CSV file with the columns video,label,start"):
        load_truth(folder, dense=True)


def test_csv_files(tmp_path: Path) -> None:
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
