"""Small valid records in many forms that protobuf and the dataset allow, as inputs of mutations.

Frames differ from each other, and each byte differs from its neighbours, so that offset errors are detected.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tests.support.video_level import encode_video_level
from tests.support.wire import bytes_feature, delimited, entry, frame_list, packed_integers, unpacked_integers, varint
from yt8m.shards.writer import encode_video

MAX_FRAMES = 12
NUM_RGB, NUM_AUDIO = 1024, 128
IDS = ("abcd", "SjJ3", "Ünï4", "x", "0123456789" * 6)
UNKNOWN_FIELDS = (
    varint(8 * 9) + varint(2**60),
    varint(8 * 10 + 1) + bytes(8),
    varint(8 * 11 + 5) + bytes(4),
    delimited(12, b"anything"),
    delimited(2**29 - 1, b""),
)


def valid_record(rng: np.random.Generator) -> bytes:
    """A valid record: mostly frame-level, some video-level, some of AudioSet, some of floats."""
    kinds = ["written", "handmade", "video level", "audioset", "floats"]
    match rng.choice(kinds, p=[0.2, 0.58, 0.12, 0.05, 0.05]):
        case "written":
            return _written(rng)
        case "handmade":
            return _handmade(rng)
        case "video level":
            return _video_level(rng)
        case "floats":
            names = ("rgb", "audio") if rng.integers(2) else ("RGB/feature/floats", "AUDIO/feature/floats")
            floats = b"".join(delimited(1, delimited(2, delimited(1, bytes(40)))) for _ in range(3))
            return _sections(rng, _context(rng), [entry(name, floats) for name in names])
        case _:
            return _sections(rng, _context(rng), [entry("audio_embedding", frame_list(_frames(rng, NUM_AUDIO)))])


def _frames(rng: np.random.Generator, size: int, count: int | None = None) -> list[bytes]:
    count = _num_frames(rng) if count is None else count
    frames = int(rng.integers(256)) + 31 * np.arange(count)[:, None] + 7 * np.arange(size)
    return [bytes(frame) for frame in frames.astype(np.uint8)]


def _num_frames(rng: np.random.Generator) -> int:
    return min(int(rng.geometric(0.25)), MAX_FRAMES)


def _labels(rng: np.random.Generator) -> list[int]:
    return rng.choice([0, 1, 3, 127, 128, 3861, 3862, 2**31, 2**63 - 1, -1], int(rng.integers(0, 5))).tolist()


def _ratings(rng: np.random.Generator) -> list[tuple[int, int, float]]:
    labels = rng.choice([0, 7, 128, 3861, 3862], int(rng.integers(0, 5))).tolist()
    return [(label, int(rng.choice([0, 5, 10, 3, 60])), float(rng.choice([0, 1, 1, 0.5]))) for label in labels]


def _written(rng: np.random.Generator) -> bytes:
    count = _num_frames(rng)
    frames = np.array([[*rgb, *audio] for rgb, audio in zip(*_lists(rng, count), strict=True)], np.uint8)
    return encode_video(str(rng.choice(IDS)), frames, _labels(rng), ratings=_ratings(rng))


def _lists(rng: np.random.Generator, count: int) -> tuple[list[bytes], list[bytes]]:
    return _frames(rng, NUM_RGB, count), _frames(rng, NUM_AUDIO, count)


def _handmade(rng: np.random.Generator) -> bytes:
    count = _num_frames(rng)
    rgb, audio = _lists(rng, count)
    if rng.random() < 0.2:
        # Real shards contain videos with fewer rgb frames than audio frames.
        rgb = rgb[: int(rng.integers(1, count + 1))]
    lists = [_list_entry(rng, "rgb", rgb), _list_entry(rng, "audio", audio)]
    if rng.random() < 0.15:
        lists.insert(0, _list_entry(rng, str(rng.choice(["rgb", "audio", "motion"])), _frames(rng, NUM_RGB, 1)))
    return _sections(rng, _context(rng), lists)


def _list_entry(rng: np.random.Generator, name: str, frames: list[bytes]) -> bytes:
    pieces = [delimited(1, bytes_feature(frame)) for frame in frames]
    match rng.choice(["usual", "padded", "padding between", "split", "several kinds"], p=[0.5, 0.1, 0.15, 0.15, 0.1]):
        case "padded":
            pieces = [delimited(1, bytes_feature(frame) + delimited(9, b"odd")) for frame in frames]
        case "padding between":
            pieces.insert(int(rng.integers(0, len(pieces) + 1)), delimited(15, b"between"))
        case "split":
            cut = int(rng.integers(0, len(pieces) + 1))
            values = delimited(2, b"".join(pieces[:cut])) + delimited(2, b"".join(pieces[cut:]))
            return delimited(1, delimited(1, name.encode()) + values)
        case "several kinds":
            pieces[0] = delimited(1, packed_integers(1) + bytes_feature(frames[0]))
    return entry(name, b"".join(pieces))


def _context(rng: np.random.Generator) -> list[bytes]:
    """Entries of a context in any order, some overridden by later ones."""
    names = ["id"] if rng.random() < 0.7 else ["video_id"] if rng.random() < 0.7 else ["id", "video_id"]
    entries = [entry(name, bytes_feature(str(rng.choice(IDS)).encode())) for name in names]
    if rng.random() < 0.8:
        entries.append(entry("labels", _integers(rng, _labels(rng))))
    if rng.random() < 0.5:
        ratings = _ratings(rng)
        columns = {
            "segment_labels": [label for label, _, _ in ratings],
            "segment_start_times": [start for _, start, _ in ratings],
            "segment_end_times": [start + 5 for _, start, _ in ratings],
        }
        if rng.random() < 0.2:
            columns[str(rng.choice(list(columns)))].append(5)
        entries += [entry(name, _integers(rng, column)) for name, column in columns.items()]
        entries.append(entry("segment_scores", _floats(rng, [score for _, _, score in ratings])))
    if rng.random() < 0.2:
        entries.append(entry("url", bytes_feature(b"https://x", b"")))
    if rng.random() < 0.15:
        entries.insert(0, entry(str(rng.choice(["labels", "segment_labels"])), packed_integers(5, 6)))
    elif rng.random() < 0.5:
        rng.shuffle(entries)
    return entries


def _integers(rng: np.random.Generator, values: Sequence[int]) -> bytes:
    match rng.integers(5):
        case 0:
            return unpacked_integers(*values)
        case 1:
            return packed_integers(*values[:1]) + unpacked_integers(*values[1:])
        case 2 if not values:
            return b""
        case _:
            return packed_integers(*values)


def _floats(rng: np.random.Generator, values: Sequence[float]) -> bytes:
    raw = [struct.pack("<f", value) for value in values]
    if rng.random() < 0.3:
        return delimited(2, b"".join(varint(8 + 5) + value for value in raw))
    return delimited(2, delimited(1, b"".join(raw)))


def _video_level(rng: np.random.Generator) -> bytes:
    rgb, audio = ((np.arange(size) % 7 - 3).astype(np.float32) for size in (NUM_RGB, NUM_AUDIO))
    if rng.random() < 0.5:
        return encode_video_level(str(rng.choice(IDS)), rgb, audio, _labels(rng))
    means = [entry(name, _floats(rng, mean.tolist())) for name, mean in (("mean_rgb", rgb), ("mean_audio", audio))]
    return _sections(rng, _context(rng) + means, [])


def _sections(rng: np.random.Generator, context: list[bytes], lists: list[bytes]) -> bytes:
    """Distribute entries over sections, usually one of each kind, at times several, among unknown fields."""
    sections = []
    for number, entries in ((1, context), (2, lists)):
        if rng.random() < 0.2:
            entries.insert(int(rng.integers(0, len(entries) + 1)), UNKNOWN_FIELDS[rng.integers(len(UNKNOWN_FIELDS))])
        cuts = sorted(rng.integers(0, len(entries) + 1, 2).tolist()) if rng.random() < 0.2 else []
        ends = [0, *cuts, len(entries)]
        sections += [delimited(number, b"".join(entries[a:b])) for a, b in pairwise(ends)]
    if rng.random() < 0.2:
        sections.append(UNKNOWN_FIELDS[rng.integers(len(UNKNOWN_FIELDS))])
    if rng.random() < 0.2:
        # Shuffling can reorder entries of the same name; the last one of a name is used.
        rng.shuffle(sections)
    return b"".join(sections)
