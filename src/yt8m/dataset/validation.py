"""Validation of a loaded catalog: every column as a whole, so that no number in it can lead a reader astray.

A catalog is a file, and may be damaged or edited. Reading relies on it without further checks of offsets, and training on
the order and the ranges of labels and ratings.
"""

from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from yt8m.features import MODALITIES
from yt8m.shards.ids import MAX_ID_BYTES, SEGMENT_SECONDS
from yt8m.shards.names import is_shard_name
from yt8m.shards.records import row_bytes
from yt8m.shards.tfrecord import FRAMING_BYTES, HEADER_BYTES, MAX_RECORD_BYTES

if TYPE_CHECKING:
    from yt8m.dataset.catalog import Catalog

MAX_SHARD_BYTES = 2**60
"""Sums of sizes, and products of strides and numbers of frames, are far below 2^63."""


def require_valid(catalog: "Catalog") -> None:
    """Require that the columns of a catalog agree with each other and with the sizes of the shards.

    Raises:
        ValueError: They do not; says what was found.
    """
    _require_shards(catalog)
    _require_rows(catalog)
    _require_ids(catalog)
    _require_labels(catalog)
    _require_ratings(catalog)


def _fail(found: str) -> NoReturn:
    raise ValueError(found)


def _require_shards(c: "Catalog") -> None:
    names = [shard.name for shard in c.shards]
    if not all(map(is_shard_name, names)) or names != sorted(set(names)):
        _fail("its names of shards are not sorted, or are no names of shards")
    for shard in c.shards:
        checksums = [number for number in (shard.checksum, shard.sample) if number is not None]
        if not (0 <= shard.num_bytes <= MAX_SHARD_BYTES and all(0 <= number < 2**32 for number in checksums)):
            _fail(f"the size or a checksum of {shard.name} is impossible")


def _require_rows(c: "Catalog") -> None:
    rows = (
        "record_number",
        "record_offset",
        "record_length",
        "rgb_offset",
        "rgb_stride",
        "audio_offset",
        "audio_stride",
    )
    if not len(c) or any(len(getattr(c, name)) != len(c) for name in ("ids", "shard_index", *rows)):
        _fail("it has no rows, or columns of different lengths")
    index = c.shard_index
    if not 0 <= index[0] <= index[-1] < len(c.shards) or (np.diff(index) < 0).any():
        _fail("its rows are not in the order of the shards")
    sizes = np.array([shard.num_bytes for shard in c.shards], np.int64)[index]
    number, begin, length = c.record_number, c.record_offset, c.record_length
    if _outside(length, 0, MAX_RECORD_BYTES) or _outside(
        begin, HEADER_BYTES, sizes - length - (FRAMING_BYTES - HEADER_BYTES)
    ):
        _fail("records are outside their shards")
    # Records before the first row of a shard, and between the rows, have room for their framing at least.
    same = index[1:] == index[:-1]
    skipped, room = number.astype(np.int64), begin - HEADER_BYTES
    skipped[1:] -= np.where(same, number[:-1].astype(np.int64) + 1, 0)
    room[1:] -= np.where(same, begin[:-1] + length[:-1] + (FRAMING_BYTES - HEADER_BYTES), 0)
    if (skipped < 0).any() or (room < FRAMING_BYTES * skipped).any() or (room[skipped == 0] != 0).any():
        _fail("its records are not in the order of their shards")
    lacks = {}
    for kind in MODALITIES:
        size = c.features.bytes_of(kind)
        offset, stride = getattr(c, f"{kind}_offset"), getattr(c, f"{kind}_stride").astype(np.int64)
        lacks[kind] = (offset == 0) & (stride == 0)
        if not size and not lacks[kind].all():
            _fail(f"it has {kind} frames, which its features have not")
        row = row_bytes(size)
        last = c.num_frames.astype(np.int64) - 1
        if (last < 0).any() or ((last + 1) * row > length)[~lacks[kind]].any():
            _fail("numbers of frames do not agree with the lengths of records")
        # A stride of 0 stands for frames that are not equally spaced; before each are its header's bytes.
        if (stride < row)[stride != 0].any():
            _fail(f"its {kind} frames overlap")
        outside = (offset < begin + row - size) | (offset > begin + length - size)
        outside |= offset + last * stride + size > begin + length
        if outside[~lacks[kind]].any():
            _fail(f"{kind} frames are outside their records")
    if np.logical_and(*lacks.values()).any():
        _fail("a row has no frames")


def _require_ids(c: "Catalog") -> None:
    if c.ids.dtype.itemsize > MAX_ID_BYTES or len(pa.array(c.ids).unique()) != len(c):
        _fail("its ids are too long, or repeated")


def _require_labels(c: "Catalog") -> None:
    rows = _rows_of("label", c.label_starts, c.label_values, len(c))
    if not _increase(rows, c.label_values) or _outside(c.label_values, 0):
        _fail("its labels are negative, repeated or not in order")


def _require_ratings(c: "Catalog") -> None:
    starts, labels = c.rating_start_seconds, c.rating_labels
    if not len(labels) == len(starts) == len(c.rating_values):
        _fail("its columns of ratings differ in length")
    rows = _rows_of("rating", c.rating_starts, labels, len(c))
    if _outside(starts, 0, c.num_frames[rows] - 1) or (starts % SEGMENT_SECONDS).any():
        _fail("ratings are not at the start of a segment of their video")
    if _outside(labels, 0) or _outside(c.rating_values, 0, 1):
        _fail("its ratings have impossible labels or values")
    if not _increase(rows, starts.astype(np.int64) << 32 | labels):
        _fail("its ratings are repeated or not in order")


def _rows_of(what: str, starts: NDArray[np.int64], values: NDArray[np.generic], num_rows: int) -> NDArray[np.int64]:
    """The row of each value, after a check of the starts of the rows."""
    if len(starts) != num_rows + 1 or starts[0] != 0 or starts[-1] != len(values) or (np.diff(starts) < 0).any():
        _fail(f"its {what}s are not divided among its rows")
    return np.repeat(np.arange(num_rows), np.diff(starts))


def _increase(rows: NDArray[np.int64], values: NDArray[np.integer]) -> bool:
    """Whether values increase within each row."""
    return bool(((values[1:] > values[:-1]) | (rows[1:] != rows[:-1])).all())


def _outside(
    values: NDArray[np.integer], least: int | NDArray[np.int64], most: int | NDArray[np.integer] = 2**62
) -> bool:
    return bool(((values < least) | (values > most)).any())
