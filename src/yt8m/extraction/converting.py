"""Convert features that other programs extracted into the shards of a folder: files of features in, shards out.

The folder has what an extraction leaves: shards, `videos.csv` and `extraction.yaml`. Videos that it contains already are
not written again; new ones become new shards. After a kill, the same command ends with the same bytes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from yt8m.extraction.feature_files import FILE_NAMES, is_feature_file, read_features
from yt8m.extraction.output import Extracted, ExtractionSettings, next_shard, require_settings
from yt8m.extraction.videos import Video, find_files, path_text, read_videos, write_videos
from yt8m.files import clear_all_leftovers
from yt8m.runtime.locks import locked
from yt8m.runtime.progress import ProgressFactory, ProgressTask, no_progress
from yt8m.shards.writer import ShardWriter

EXTRACTOR = "converted features"


def convert(
    inputs: Sequence[Path],
    out: Path,
    *,
    videos_per_shard: int = 256,
    progress: ProgressFactory = no_progress,
    report: Callable[[str], None] = lambda _: None,
) -> Extracted:
    """Convert files of features into the shards of a folder.

    Args:
        inputs: Files of features (see `read_features`), folders of them, and lists.
        out: The folder of shards. It receives `videos.csv`, with a row per video: its id, and the path or id that it had.
        videos_per_shard: Videos of a shard.
        progress: Reports files done.
        report: Called with a sentence for each video that cannot be converted.

    Raises:
        UsageError: The input contains no such file, or the folder was made by another extraction.
        Yt8mError: The disk is full, or another process writes into the folder.
    """
    paths = find_files(inputs, is_feature_file, f"files of features ({FILE_NAMES})")
    settings = ExtractionSettings(extractor=EXTRACTOR, digest="", videos_per_shard=videos_per_shard)
    with locked(out):
        out.mkdir(parents=True, exist_ok=True)
        clear_all_leftovers(out)
        require_settings(out, settings)
        conversion = _Conversion(out, report)
        with progress("convert", len(paths)) as task:
            return conversion.run(paths, videos_per_shard, task)


class _Conversion:
    """A conversion into a folder that this process has locked."""

    def __init__(self, out: Path, report: Callable[[str], None]) -> None:
        self._out, self._report = out, report
        before = read_videos(out)
        self._done = [video for video in before if video.is_extracted]
        self._failed = [video for video in before if not video.is_extracted]
        self._now_failed: list[Video] = []
        self._first_of_id = {video.video_id: video for video in reversed(self._done)}
        self._known = set(map(_identity, self._done))
        self._num_known = 0

    def run(self, paths: list[Path], videos_per_shard: int, task: ProgressTask) -> Extracted:
        texts = set(map(path_text, paths))
        # Files that failed before are read again.
        self._failed = [video for video in self._failed if not {video.path, _file_of(video)} & texts]
        num_new = 0
        videos = self._new_videos(paths, task)
        while (first := next(videos, None)) is not None:
            shard = next_shard(self._out, self._done)
            with ShardWriter(shard) as writer:
                for video, record in itertools.chain([first], itertools.islice(videos, videos_per_shard - 1)):
                    writer.write(record)
                    self._add(replace(video, shard=shard.name))
                    num_new += 1
            self._save()
        self._save()
        task(len(paths))
        return Extracted([*self._done, *self._failed], num_new, self._num_known, self._now_failed)

    def _add(self, video: Video) -> None:
        self._done.append(video)
        self._first_of_id.setdefault(video.video_id, video)
        self._known.add(_identity(video))

    def _save(self) -> None:
        write_videos(self._out, [*self._done, *self._failed])

    def _new_videos(self, paths: list[Path], task: ProgressTask) -> Iterator[tuple[Video, bytes]]:
        """Videos that the folder does not contain, and their records; the others are counted, or listed with the reason."""
        for number, path in enumerate(paths):
            task(number, note=path.name)
            for video, record in read_features(path):
                if not record:
                    self._report(f"{video.path}: {video.note}")
                    self._failed.append(video)
                    self._now_failed.append(video)
                    continue
                same = self._first_of_id.get(video.video_id)
                if same is not None and _identity(same) != _identity(video):
                    video = _repeated(video, same)  # noqa: PLW2901
                if _identity(video) in self._known:
                    self._num_known += 1
                elif same is not None:
                    self._report(f"{video.path}: {video.note}")
                    self._add(video)
                else:
                    yield video, record


def _file_of(video: Video) -> str:
    """The file of a record that could not be converted."""
    return video.path.rpartition(", record ")[0]


def _repeated(video: Video, first: Video) -> Video:
    """The row of a video that is not written, since its id is that of another one."""
    what = "id" if video.path == video.video_id else "content"
    note = f"the same {what} as {first.note.split('; ')[0] if what == 'id' else first.path}"
    return replace(video, shard=first.shard, note="; ".join(filter(None, [video.note, note])))


def _identity(video: Video) -> tuple[str, str, str]:
    """What tells one video of the input from another, in whatever run it was found."""
    return video.video_id, video.path, video.note
