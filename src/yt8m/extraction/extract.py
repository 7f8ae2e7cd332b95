"""Extract the features of video files into shards.

The files are taken in groups, each of which becomes one shard. The features of a finished video wait in a file of their
own until its group is complete, so a kill costs the video at hand, and the next run ends with the same bytes. A file that
fails is listed with the reason; the others are extracted.
"""

import itertools
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from yt8m.errors import Yt8mError
from yt8m.extraction.decode import Frames, UnreadableVideoError
from yt8m.extraction.decoder import DecoderProcess, Decoding
from yt8m.extraction.output import (
    NO_SOUND,
    Extracted,
    ExtractionSettings,
    next_shard,
    require_settings,
    sound_of_frames,
)
from yt8m.extraction.videos import Video, find_videos, path_text, read_videos, video_id, write_videos
from yt8m.files import cache_folder, clear_all_leftovers, written_atomically
from yt8m.runtime.locks import locked
from yt8m.runtime.progress import ProgressFactory, ProgressTask, no_progress
from yt8m.shards.writer import ShardWriter, encode_video

CACHE_VARIABLE = "YT8M_VIDEOS"
"""Environment variable that names the folder of features of single videos."""

WORK_FOLDER = "unfinished"


class Extractor(Protocol):
    """Networks that turn prepared frames and sound into features."""

    @property
    def name(self) -> str:
        """Name of the networks."""

    @property
    def digest(self) -> str:
        """Digest of all weights."""

    @property
    def frame_size(self) -> int:
        """Width and height of its frames."""

    def rgb(self, frames: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Features of frames float32 (n, size, size, 3), values 0 to 255: uint8 (n, 1024)."""

    def audio(self, windows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Features of windows float32 (n, 15600), mono at 16 kHz: uint8 (n, 128)."""


def extract(
    inputs: Sequence[Path],
    out: Path,
    extractor: Extractor,
    *,
    max_seconds: int | None = None,
    videos_per_shard: int = 256,
    num_decoders: int = 2,
    progress: ProgressFactory = no_progress,
    report: Callable[[str], None] = lambda _: None,
) -> Extracted:
    """Extract the features of video files into the shards of a folder.

    Videos that the folder contains already are not extracted again, wherever their files are now: new ones become new
    shards.

    Args:
        inputs: Video files, folders and lists; see `find_videos`.
        out: The folder of shards. It receives `videos.csv`, with a row per video file.
        extractor: The networks.
        max_seconds: Seconds of a video to extract; all by default.
        videos_per_shard: Videos of a shard.
        num_decoders: Child processes that decode.
        progress: Reports videos done.
        report: Called with a sentence for each file that fails.

    Raises:
        UsageError: The input contains no video, or the folder was extracted with other settings.
        Yt8mError: The disk is full, or another process extracts into the folder.
    """
    paths = find_videos(inputs)
    settings = ExtractionSettings(
        extractor=extractor.name, digest=extractor.digest, max_seconds=max_seconds, videos_per_shard=videos_per_shard
    )
    with locked(out):
        out.mkdir(parents=True, exist_ok=True)
        clear_all_leftovers(out)
        require_settings(out, settings)
        return _Extraction(out, settings, extractor, num_decoders, progress, report).run(paths)


def extract_one(path: Path, extractor: Extractor, progress: ProgressFactory = no_progress) -> Path:
    """Extract the features of one video file into the user's cache, or find them there.

    Returns:
        The shard, which contains only this video.

    Raises:
        UsageError: There is no such file.
        Yt8mError: It cannot be decoded.
    """
    folder = cache_folder("videos", CACHE_VARIABLE) / f"{extractor.name}-{extractor.digest[:16]}"
    found = extract([path], folder, extractor, videos_per_shard=1, progress=progress)
    video = next(video for video in found.videos if video.path == path_text(path.absolute()))
    if not video.is_extracted:
        raise Yt8mError(f"{path}: {video.note}.")
    return folder / video.shard


class _Extraction:
    """An extraction into a folder that this process has locked."""

    def __init__(
        self,
        out: Path,
        settings: ExtractionSettings,
        extractor: Extractor,
        num_decoders: int,
        progress: ProgressFactory,
        report: Callable[[str], None],
    ) -> None:
        self._out, self._settings, self._extractor = out, settings, extractor
        self._num_decoders, self._progress, self._report = num_decoders, progress, report
        self._videos = read_videos(out)
        self._num_new = 0
        self._work = out / WORK_FOLDER

    def run(self, paths: list[Path]) -> Extracted:
        by_path = {video.path: video for video in self._videos}
        known: list[Path] = []
        new: list[Path] = []
        again: list[Path] = []
        for path in paths:
            video = by_path.get(path_text(path))
            if video is not None and video.is_extracted and video.is_of(path):
                known.append(path)
            else:
                # Files that failed before come last, so that they do not change the shards of the others.
                (new if video is None else again).append(path)
        todo = [*_batched(new, self._settings.videos_per_shard), *_batched(again, self._settings.videos_per_shard)]
        with self._progress("extract", len(paths)) as task:
            done = len(known)
            for group in todo:
                task(done)
                self._extract_group(group, task, done)
                done += len(group)
            task(done)
        if self._work.is_dir():
            shutil.rmtree(self._work)
        wanted = set(map(path_text, paths))
        return Extracted(
            self._videos,
            self._num_new,
            len(known),
            [video for video in self._videos if video.path in wanted and not video.is_extracted],
        )

    def _extract_group(self, paths: Sequence[Path], task: ProgressTask, done: int) -> None:
        """Extract a group of videos, and write its shard."""
        shard = next_shard(self._out, self._videos)
        in_shards = {video.video_id: video for video in reversed(self._videos) if video.is_extracted}
        rows: list[Video] = []
        for position, video in enumerate(self._features_of(paths, in_shards)):
            task(done + position, note=Path(video.path).name)
            if video.note and not video.is_extracted:
                self._report(f"{video.path}: {video.note}")
            rows.append(video)
            if video.is_extracted:
                in_shards.setdefault(video.video_id, video)
        named = [replace(row, shard=shard.name) if row.shard == _NEW else row for row in rows]
        new = list(dict.fromkeys(row.video_id for row in rows if row.shard == _NEW))
        if new:
            with ShardWriter(shard) as writer:
                for name in new:
                    writer.write(encode_video(name, _read(self._feature_file(name))[0]))
        self._num_new += len(new)
        replaced = set(map(path_text, paths))
        found = {row.video_id for row in named}
        self._videos = [
            video
            for video in self._videos
            if video.path not in replaced and (video.video_id not in found or Path(video.path).exists())
        ]
        self._videos += named
        write_videos(self._out, self._videos)
        for name in new:
            self._feature_file(name).unlink(missing_ok=True)

    def _features_of(self, paths: Sequence[Path], in_shards: dict[str, Video]) -> Iterator[Video]:
        """Extract videos in order into their feature files; decoders start ahead of their turn."""
        started: deque[tuple[Path, Video, DecoderProcess | None]] = deque()
        waiting = iter(paths)
        try:
            while True:
                for path in itertools.islice(waiting, max(1, self._num_decoders) - len(started)):
                    known = {video.video_id: video for _, video, _ in started} | in_shards
                    started.append((path, *self._start(path, known)))
                if not started:
                    return
                path, video, decoder = started.popleft()
                try:
                    yield self._finish(path, video, decoder)
                finally:
                    if decoder is not None:
                        decoder.close()
        finally:
            for _, _, decoder in started:
                if decoder is not None:
                    decoder.close()

    def _start(self, path: Path, known: dict[str, Video]) -> tuple[Video, DecoderProcess | None]:
        """The row of a file, and the process that decodes it, where that is to be done.

        Args:
            path: The file.
            known: Videos in shards or in progress, by id.
        """
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                return Video("", path_text(path), 0, 0, note="is not a file"), None
            video = Video(video_id(path), path_text(path), status.st_size, status.st_mtime_ns)
        except OSError as error:
            return Video("", path_text(path), 0, 0, note=f"cannot be read ({error.strerror})"), None
        except Yt8mError as error:
            return Video("", path_text(path), 0, 0, note=str(error).removeprefix(f"{path}: ").removesuffix(".")), None
        if (same := known.get(video.video_id)) is not None:
            exists = same.path != video.path and Path(same.path).exists()
            note = f"the same content as {same.path}" if exists else same.note
            return replace(video, seconds=same.seconds, shard=same.shard, note=note), None
        if self._feature_file(video.video_id).is_file():
            features, note = _read(self._feature_file(video.video_id))
            return replace(video, seconds=len(features), shard=_NEW, note=note), None
        decoding = Decoding(path, self._extractor.frame_size, self._settings.max_seconds)
        return replace(video, shard=_NEW), DecoderProcess(decoding)

    def _finish(self, path: Path, video: Video, decoder: DecoderProcess | None) -> Video:
        """Receive the frames of a video, and write its features; the row says how it ended."""
        file = self._feature_file(video.video_id)
        if decoder is None:
            if video.shard != _NEW:
                return video
            if not file.is_file():
                return replace(video, shard="", note=f"{video.note}, which failed")
            return replace(video, seconds=len(_read(file)[0]))
        rgb, audio = [], []
        try:
            for result in decoder:
                if isinstance(result, Frames):
                    rgb.append(self._extractor.rgb(result.values))
                else:
                    audio.append(self._extractor.audio(result.values))
        except UnreadableVideoError as error:
            return replace(video, shard="", note=str(error))
        if not video.is_of(path):
            return replace(video, shard="", note="changed while it was read; run again when it is complete")
        frames = np.concatenate(rgb)
        sound, notes = sound_of_frames(np.concatenate([NO_SOUND, *audio]), len(frames))
        note = "; ".join([*decoder.odd.found, *notes])
        with written_atomically(file) as temporary, temporary.open("wb") as opened:
            np.savez(opened, features=np.concatenate([frames, sound], axis=1), note=np.array(note))
        return replace(video, seconds=len(frames), note=note)

    def _feature_file(self, name: str) -> Path:
        return self._work / f"{name}.npz"


_NEW = "?"
"""Stands for the shard that is not written yet."""


def _read(path: Path) -> tuple[NDArray[np.uint8], str]:
    """Features and note of a video that waits for its shard."""
    with np.load(path) as arrays:
        return arrays["features"], str(arrays["note"])


def _batched(paths: list[Path], size: int) -> Iterator[list[Path]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]
