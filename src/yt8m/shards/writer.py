"""Write shards that any reader of YouTube-8M reads.

Context features go through protobuf, with message classes built at run time from their descriptors. The frames are laid
out with numpy and appended: concatenated messages are one message, so the bytes are those that protobuf would write.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from numpy.typing import NDArray

from yt8m.features import MODALITIES, YOUTUBE8M, Features
from yt8m.files import written_atomically
from yt8m.shards.ids import SEGMENT_SECONDS
from yt8m.shards.records import frame_header
from yt8m.shards.tfrecord import frame_record
from yt8m.shards.wire import FEATURE_LISTS, MAP_ENTRY, MAP_KEY, MAP_VALUE, delimited_header

_Field = descriptor_pb2.FieldDescriptorProto
_LISTS = {"BytesList": _Field.TYPE_BYTES, "FloatList": _Field.TYPE_FLOAT, "Int64List": _Field.TYPE_INT64}
_KINDS = ("bytes_list", "float_list", "int64_list")
_MAPS = {"Features": ("feature", "Feature"), "FeatureLists": ("feature_list", "FeatureList")}
_RECORDS = {
    "Example": {"features": "Features"},
    "SequenceExample": {"context": "Features", "feature_lists": "FeatureLists"},
}


@cache
def message_class(name: str) -> type[Message]:
    """The protobuf class of a message of tensorflow/core/example: Example or SequenceExample.

    It is in a pool of its own, apart from the classes of TensorFlow where both are loaded.
    """
    file = descriptor_pb2.FileDescriptorProto(name="yt8m/example.proto", package="tensorflow", syntax="proto3")
    for list_name, kind in _LISTS.items():
        file.message_type.add(name=list_name).field.add(name="value", number=1, label=_Field.LABEL_REPEATED, type=kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (field, list_name) in enumerate(zip(_KINDS, _LISTS, strict=True), start=1):
        _add_message_field(feature, field, number, list_name).oneof_index = 0
    _add_message_field(file.message_type.add(name="FeatureList"), "feature", 1, "Feature").label = _Field.LABEL_REPEATED
    for map_name, (field, value) in _MAPS.items():
        holder = file.message_type.add(name=map_name)
        entry = holder.nested_type.add(name=f"{value}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
        _add_message_field(entry, "value", 2, value)
        _add_message_field(holder, field, 1, f"{map_name}.{value}Entry").label = _Field.LABEL_REPEATED
    for record_name, fields in _RECORDS.items():
        record = file.message_type.add(name=record_name)
        for number, (field, kind_name) in enumerate(fields.items(), start=1):
            _add_message_field(record, field, number, kind_name)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.{name}"))


def _add_message_field(
    message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str
) -> descriptor_pb2.FieldDescriptorProto:
    return message.field.add(
        name=name,
        number=number,
        label=_Field.LABEL_OPTIONAL,
        type=_Field.TYPE_MESSAGE,
        type_name=f".tensorflow.{kind}",
    )


def encode_video(
    video_id: str,
    frames: NDArray[np.uint8],
    labels: Sequence[int] = (),
    *,
    ratings: Sequence[tuple[int, int, float]] = (),
    features: Features = YOUTUBE8M,
) -> bytes:
    """Serialize a frame-level record.

    Args:
        video_id: The id.
        frames: Bytes of the frames, uint8 (T, bytes), rgb then audio: (T, 1152) of YouTube-8M.
        labels: Label ids of the video; without any, the record has no such feature, as in the test set.
        ratings: (label id, start in seconds, 0 or 1) of rated segments.
        features: What the frames are.

    Returns:
        A serialized `tf.train.SequenceExample`.
    """
    if frames.ndim != 2 or frames.shape[1] != features.frame_bytes or frames.dtype != np.uint8:
        raise ValueError(f"expected frames uint8 (T, {features.frame_bytes}), got {frames.dtype} {frames.shape}")
    message: Any = message_class("SequenceExample")()
    context = message.context.feature
    context["id"].bytes_list.value.append(video_id.encode())
    if len(labels):
        context["labels"].int64_list.value.extend(labels)
    if len(ratings):
        label_ids, starts, scores = zip(*ratings, strict=True)
        context["segment_labels"].int64_list.value.extend(label_ids)
        context["segment_start_times"].int64_list.value.extend(starts)
        context["segment_end_times"].int64_list.value.extend(start + SEGMENT_SECONDS for start in starts)
        context["segment_scores"].float_list.value.extend(scores)
    parts = np.split(frames, [features.bytes_of("rgb")], axis=1)
    lists = b"".join(_feature_list(name, part) for name, part in zip(MODALITIES, parts, strict=True) if part.shape[1])
    return b"".join([message.SerializeToString(deterministic=True), delimited_header(FEATURE_LISTS, len(lists)), lists])


def _feature_list(name: str, values: NDArray[np.uint8]) -> bytes:
    """One entry of the map of feature lists; each frame is a row after its header."""
    header = frame_header(values.shape[1])
    rows = np.empty((len(values), len(header) + values.shape[1]), np.uint8)
    rows[:, : len(header)] = np.frombuffer(header, np.uint8)
    rows[:, len(header) :] = values
    key = delimited_header(MAP_KEY, len(name)) + name.encode()
    value_header = delimited_header(MAP_VALUE, rows.size)
    entry_header = delimited_header(MAP_ENTRY, len(key) + len(value_header) + rows.size)
    return b"".join([entry_header, key, value_header, rows.data])


class ShardWriter:
    """Writes a shard, which gets its name when the `with` block ends without an error.

    Raises:
        Yt8mError: The disk is full or the folder cannot be written to.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(written_atomically(self.path))
            self._file = stack.enter_context(temporary.open("wb"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    def write(self, payload: bytes) -> None:
        """Add a record."""
        self._file.write(frame_record(payload))
