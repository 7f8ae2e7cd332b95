"""Spliced videos: real video-level features joined into frame-level videos with exact ground truth.

A spliced video joins 1 to 4 sources. Each source owns a block of 5-second segments, whose frames are its mean vector plus
temporally correlated noise, quantized (docs/method.md, "Spliced videos"). Video labels are the union of the sources'
labels; a segment is positive for a label exactly where its source has it. Sources are not shared between the parts of the
dataset (train, valid, rated, test), and the content of video i of a part is a function of (seed, part, i) and the part's
sources; only its id depends on its number in the whole dataset.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.layout import find_shards
from yt8m.dataset.sampling import CROP_START_SECONDS, num_evaluated_segments
from yt8m.errors import UsageError, counted
from yt8m.features import YOUTUBE8M
from yt8m.files import write_csv, writing_error
from yt8m.runtime.locks import locked
from yt8m.runtime.progress import ProgressFactory, no_progress, track
from yt8m.shards.ids import SEGMENT_SECONDS
from yt8m.shards.records import read_video_level_shard
from yt8m.shards.writer import ShardWriter, encode_video
from yt8m.vocabulary import FILE_NAME as VOCABULARY_FILE
from yt8m.vocabulary import Vocabulary

NOISE_STD = 0.95
"""Standard deviation of a frame around its video's mean, per dimension, measured on a real frame-level video."""

NOISE_CORRELATION = 0.4
"""Autocorrelation of that deviation at a lag of one second."""

UNFINISHED_FILE = ".unfinished"
"""Marks the folder of a dataset that is being written."""

MAX_SOURCES = 4
NUM_SEGMENTS_RANGE = (24, 60)
"""Segments of a spliced video: as many as real ones have, 2 to 5 minutes."""

RATED_SEGMENTS = 5
"""Rated segments per class of a rated video, as in the real rated set. There a video is rated for one class; here for all
of its segment classes, since a few hundred videos replace tens of thousands."""


@dataclass(frozen=True, eq=False)
class Sources:
    """Video-level features to splice.

    Args:
        means: Mean rgb and audio vectors, float32 (N, 1152).
        labels: Label ids of each, int64 arrays.
    """

    means: NDArray[np.float32]
    labels: tuple[NDArray[np.int64], ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: NDArray[np.integer]) -> Self:
        """Some of the sources, in the given order."""
        return type(self)(self.means[chosen], tuple(self.labels[i] for i in chosen.tolist()))


@dataclass(frozen=True, eq=False)
class SplicedVideo:
    """One spliced video.

    Args:
        frames: uint8 (T, 1152).
        segment_labels: Label ids of each 5-second segment, sorted.
    """

    frames: NDArray[np.uint8]
    segment_labels: tuple[NDArray[np.int64], ...]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels of the video: the union over its segments."""
        return np.unique(np.concatenate(self.segment_labels))

    @property
    def evaluated_positions(self) -> range:
        """Positions of the segments that are rated and predicted: all but the first six and the last two."""
        first = CROP_START_SECONDS // SEGMENT_SECONDS
        return range(first, first + int(num_evaluated_segments(np.array([len(self.frames)]))[0]))


def quantize(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Nearest byte of each value, the inverse of `q * 4/255 + 4/512 - 2` (docs/method.md, "Quantization")."""
    quantized: NDArray[np.uint8] = np.clip(np.rint((values + (2 - 4 / 512)) * (255 / 4)), 0, 255).astype(np.uint8)
    return quantized


def splice(sources: Sources, chosen: NDArray[np.integer], rng: np.random.Generator) -> SplicedVideo:
    """Join some sources, in the given order, into one video.

    Args:
        sources: All sources.
        chosen: 1 to 4 positions in `sources`.
        rng: Decides the length, the boundaries and the noise.
    """
    num_segments = int(rng.integers(*NUM_SEGMENTS_RANGE))
    cuts = np.sort(rng.choice(np.arange(1, num_segments), len(chosen) - 1, replace=False))
    owner = np.searchsorted(cuts, np.arange(num_segments), side="right")
    # A video rarely ends with a complete segment.
    num_frames = num_segments * SEGMENT_SECONDS - int(rng.integers(0, SEGMENT_SECONDS))
    frame_owner = owner[np.arange(num_frames) // SEGMENT_SECONDS]
    noise = rng.standard_normal((num_frames, YOUTUBE8M.size), dtype=np.float32)
    fresh = np.float32(np.sqrt(1 - NOISE_CORRELATION**2))
    for t in range(1, num_frames):
        if frame_owner[t] == frame_owner[t - 1]:
            noise[t] *= fresh
            noise[t] += np.float32(NOISE_CORRELATION) * noise[t - 1]
    values = sources.means[chosen[frame_owner]] + np.float32(NOISE_STD) * noise
    labels = [np.unique(sources.labels[i]) for i in chosen.tolist()]
    return SplicedVideo(quantize(values), tuple(labels[block] for block in owner.tolist()))


def choose_ratings(
    video: SplicedVideo, vocabulary: Vocabulary, rng: np.random.Generator
) -> list[tuple[int, int, float]]:
    """Rate each segment class of a video on `RATED_SEGMENTS` random segments, or on all where there are fewer.

    Returns:
        (label id, start in seconds, 0 or 1), sorted; empty where the video has no segment class.
    """
    positions = video.evaluated_positions
    ratings = []
    for label in video.labels[vocabulary.class_indices(video.labels) >= 0].tolist():
        for position in rng.choice(positions, min(RATED_SEGMENTS, len(positions)), replace=False).tolist():
            ratings.append((label, position * SEGMENT_SECONDS, float(label in video.segment_labels[position])))
    return sorted(ratings)


_ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def video_id(number: int) -> str:
    """A 4-character id, as real ids are, different for every number below 62^4."""
    base = len(_ID_LETTERS)
    scattered = (number * 7_368_787 + 4_826_809) % base**4
    return "".join(_ID_LETTERS[scattered // base**digit % base] for digit in range(4))


@dataclass(frozen=True)
class Sizes:
    """Number of videos of a spliced dataset: `train` and `valid` for pre-training, `rated`, and `test`."""

    train: int
    valid: int
    rated: int
    test: int


@dataclass(frozen=True)
class _Part:
    name: str
    folder: str
    prefix: str
    size: int


def _deal(sources: Sources, sizes: Sizes, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Divide the sources among the parts, in proportion to their sizes and without overlap."""
    counts = np.array([sizes.train, sizes.valid, sizes.rated, sizes.test])
    ends = np.rint(np.cumsum(counts) / counts.sum() * len(sources)).astype(np.int64)
    return np.split(rng.permutation(len(sources)), ends[:-1])


def _choices(pool: NDArray[np.int64], size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Sources of each video of a part: every source is used before any is used again, and none twice in a video."""
    chosen: list[NDArray[np.int64]] = []
    waiting: list[int] = []
    for _ in range(size):
        count = min(int(rng.integers(1, MAX_SOURCES + 1)), len(pool))
        picked: list[int] = []
        while len(picked) < count:
            if not waiting:
                waiting = rng.permutation(pool).tolist()
            source = waiting.pop()
            if source in picked:
                waiting.insert(0, source)
            else:
                picked.append(source)
        chosen.append(np.array(picked))
    return chosen


def write_dataset(
    folder: Path,
    sources: Sources,
    vocabulary: Vocabulary,
    sizes: Sizes,
    seed: int,
    progress: ProgressFactory = no_progress,
) -> None:
    """Write a spliced dataset: the folders of shards, the vocabulary, and the ground truth of the test set.

    The truth is `segment/test_ratings.csv` (video,label,start,score; rated segments only) and
    `segment/test_positives.csv` (video,label,start; all positive segments of segment classes that are evaluated).

    Args:
        folder: Must not exist or be empty.
        sources: Features and labels to splice.
        vocabulary: The segment classes.
        sizes: Videos per part.
        seed: Seed of everything.
        progress: Reports videos written, part by part.

    Raises:
        UsageError: The folder is not empty, a size is invalid, or there are too few sources.
        Yt8mError: The disk is full or the folder cannot be written to; the written files are removed.
    """
    unfinished = folder / UNFINISHED_FILE
    if folder.exists() and not unfinished.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists and is not empty; give a new folder.")
    parts = [
        _Part("pre-training videos", "video/train", "train", sizes.train),
        _Part("validation videos", "video/valid", "valid", sizes.valid),
        _Part("rated videos", "segment/train", "rated", sizes.rated),
        _Part("test videos", "segment/test", "test", sizes.test),
    ]
    for part in parts:
        if part.size < 1:
            raise UsageError(f"{part.name}: expected at least 1, found {part.size}.")
    carriers = np.flatnonzero([bool((vocabulary.class_indices(labels) >= 0).any()) for labels in sources.labels])
    if len(carriers) < MAX_SOURCES * len(parts):
        raise UsageError(
            f"{len(carriers)} of the {len(sources)} sources have a label of the segment vocabulary; "
            f"at least {MAX_SOURCES * len(parts)} are needed. Do vocabulary and sources belong together?"
        )
    usable = sources.take(carriers)
    pools = _deal(usable, sizes, np.random.default_rng([seed, 0]))
    if min(map(len, pools)) < 1:
        raise UsageError(f"{len(usable)} sources are too few for parts of {sizes}; ask for parts of more equal sizes.")
    with locked(folder), _complete_or_empty(folder):
        _write_vocabulary(folder / VOCABULARY_FILE, vocabulary)
        first_number = 0
        for code, (part, pool) in enumerate(zip(parts, pools, strict=True)):
            videos = _spliced_videos(
                usable, _choices(pool, part.size, np.random.default_rng([seed, 1, code])), vocabulary, seed, code
            )
            _write_part(folder, part, videos, vocabulary, first_number, progress)
            first_number += part.size


@contextmanager
def _complete_or_empty(folder: Path) -> Iterator[None]:
    """Remove a partial dataset, which is useless: after an error now, after a kill when the same folder is given again.

    Until the dataset is complete, its folder contains the file `UNFINISHED_FILE`.
    """
    existed = folder.exists()

    def clear() -> None:
        # The folder itself may be a mount point; the mark goes last.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == UNFINISHED_FILE):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear()
        (folder / UNFINISHED_FILE).touch()
        yield
        (folder / UNFINISHED_FILE).unlink()
    except BaseException as error:
        with suppress(OSError):
            clear()
            if not existed:
                folder.rmdir()
        if isinstance(error, OSError):
            raise writing_error(error, folder) from error
        raise


def _spliced_videos(
    sources: Sources, choices: list[NDArray[np.int64]], vocabulary: Vocabulary, seed: int, code: int
) -> Iterator[tuple[SplicedVideo, list[tuple[int, int, float]]]]:
    for number, chosen in enumerate(choices):
        rng = np.random.default_rng([seed, 2, code, number])
        video = splice(sources, chosen, rng)
        yield video, choose_ratings(video, vocabulary, rng)


def num_shards(num_videos: int) -> int:
    """Shards of a part: enough for eight folds, of about 40 videos (10 MB) each if there are more."""
    return max(min(num_videos, 16), num_videos // 40)


def _write_part(
    folder: Path,
    part: _Part,
    videos: Iterator[tuple[SplicedVideo, list[tuple[int, int, float]]]],
    vocabulary: Vocabulary,
    first_number: int,
    progress: ProgressFactory,
) -> None:
    ends = np.linspace(0, part.size, num_shards(part.size) + 1).astype(int).tolist()
    truth: list[tuple[str, int, int, int]] = []
    positives: list[tuple[str, int, int]] = []
    numbers = track(range(part.size), part.name, progress)
    for shard, (start, stop) in enumerate(itertools.pairwise(ends)):
        with ShardWriter(folder / part.folder / f"{part.prefix}{shard:04d}.tfrecord") as writer:
            for _ in range(start, stop):
                number = next(numbers)
                video, ratings = next(videos)
                name = video_id(first_number + number)
                is_test = part.prefix == "test"
                writer.write(
                    encode_video(
                        name,
                        video.frames,
                        [] if is_test else video.labels.tolist(),
                        ratings=ratings if part.prefix == "rated" else [],
                    )
                )
                if is_test:
                    truth += [(name, label, start_seconds, int(value)) for label, start_seconds, value in ratings]
                    positives += [
                        (name, label, position * SEGMENT_SECONDS)
                        for position in video.evaluated_positions
                        for label in video.segment_labels[position].tolist()
                        if vocabulary.class_indices(label) >= 0
                    ]
    next(numbers, None)  # reports the last video
    if part.prefix == "test":
        write_csv(folder / "segment" / "test_ratings.csv", ("video", "label", "start", "score"), truth)
        write_csv(folder / "segment" / "test_positives.csv", ("video", "label", "start"), positives)


def _write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    write_csv(path, ("Index", "Name"), zip(vocabulary.label_ids.tolist(), vocabulary.names, strict=True))


def read_sources(
    folder: Path, progress: ProgressFactory = no_progress, report: Callable[[str], None] = lambda _: None
) -> Sources:
    """Read video-level shards as sources to splice; those with a feature that is not finite are skipped.

    Args:
        folder: The folder of shards.
        progress: Reports shards read.
        report: Receives a sentence on the videos skipped, if any.

    Raises:
        UsageError: The folder is missing or contains no shards, or none of its videos can be used.
        ShardError: A shard is damaged or not video-level.
    """
    means: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    num_skipped = 0
    for shard in track(find_shards(folder), "sources", progress):
        for record in read_video_level_shard(shard):
            mean = np.concatenate([record.mean_rgb, record.mean_audio])
            if not np.isfinite(mean).all():
                num_skipped += 1
                continue
            means.append(mean)
            labels.append(np.asarray(record.labels, np.int64))
    skipped = f"{counted(num_skipped, 'video')} with features that are not finite (NaN or infinity)"
    if not means:
        raise UsageError(f"{folder}: its shards contain no videos{f' but {skipped}' if num_skipped else ''}.")
    if num_skipped:
        report(f"{folder}: skipped {skipped}")
    return Sources(np.stack(means), tuple(labels))
