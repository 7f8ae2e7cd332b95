"""Differences between the readers and three other parsers: `python -m tests.fuzz.differences --records 100000`.

- Protobuf in C++, through TensorFlow's operation `ParseSingleSequenceExample`, is the reference: no difference is allowed.
- Protobuf in Python (`FromString`) drops entries of maps that have unknown fields. Otherwise no difference is allowed.
- `tf.io.parse_single_sequence_example` uses a parser of its own, which reads or refuses records differently if they are
  of a form that no writer produces: `form_of` names the form. In the form of writers no difference is allowed.

Half of the mutations know the wire format (`mutations`), the other half is blind: flipped bits, spliced, truncated,
inserted and deleted bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from tests.fuzz.check import INTEGERS, SIZES, parsed_by_python, without_particulars
from tests.fuzz.fields import Field, tree
from tests.fuzz.mutations import mutated_record
from tests.fuzz.seeds import valid_record
from tests.support.tensorflow import tf
from yt8m.shards.records import VideoRecord, frame_offsets, read_video
from yt8m.shards.wire import MalformedRecordError

Values = dict[str, list[Any]]
"""Values of the features by name; of lists, one byte string a frame."""

HEAD_BYTES = 400
"""Half of the blind mutations are within the first bytes, where the context is; the others are mostly in frames."""

READERS = ("C++ protobuf", "Python protobuf", "TensorFlow's own parser")
WRITTEN = "the form of writers"


def blind_record(seed: int, number: int) -> bytes:
    """A valid record after one to three mutations of its bytes, without knowledge of the wire format."""
    rng = np.random.default_rng([seed, number, 2])
    payload = bytearray(valid_record(rng))
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, max(1, min(len(payload), HEAD_BYTES) if rng.random() < 0.5 else len(payload))))
        match rng.integers(6):
            case 0 if at < len(payload):
                payload[at] ^= 1 << int(rng.integers(8))
            case 1 if at < len(payload):
                payload[at] = int(rng.integers(256))
            case 2:
                del payload[at:]
            case 3:
                payload[at:] = valid_record(rng)[int(rng.integers(0, HEAD_BYTES)) :]
            case 4:
                payload[at:at] = rng.bytes(int(rng.integers(1, 8)))
            case _:
                del payload[at : at + int(rng.integers(1, 8))]
    return bytes(payload)


def differences(payload: bytes) -> list[str]:
    """Kinds of differences between `read_video`, `frame_offsets` and the parsers, for one record.

    A record that only `read_video` rejects is counted under its reason: such records are of another dataset, incomplete,
    or of one of the forms that the readers refuse on purpose.
    """
    message = parsed_by_python(payload, "SequenceExample")
    by_cpp = _by_operation(payload, message, _parse_with_protobuf)
    try:
        video = read_video(payload)
    except MalformedRecordError as error:
        reason = without_particulars(error.message)
        return [] if message is None and by_cpp is None else [f"only the reader rejects: {reason}"]
    found = _values(payload, video)
    kinds = []
    by_python = None if message is None else _of_message(message)
    by_own = _by_operation(payload, message, _parse_with_own_parser)
    for name, other in zip(READERS, (by_cpp, by_python, by_own), strict=True):
        if other is None:
            kinds.append(f"{name} rejects {form_of(payload)}")
        elif repr(other) != repr(found):  # NaN is not equal to itself.
            kinds.append(f"{name} reads other values in {form_of(payload)}")
    return kinds


def _values(payload: bytes, video: VideoRecord) -> Values:
    """What the reader finds. Frames at a stride and frames found one by one must be the same."""
    values: Values = {name: _numbers(getattr(video, name)) for name in (*INTEGERS, "segment_scores")}
    values["id"] = [video.id.encode()]
    for (name, size), offsets in zip(SIZES.items(), frame_offsets(payload), strict=True):
        layout = video.rgb if name == "rgb" else video.audio
        if layout.stride:
            assert offsets.tolist() == [layout.offset + layout.stride * i for i in range(layout.num_frames)]
        values[name] = [payload[at : at + size] for at in offsets.tolist()]
    return values


def _numbers(values: Iterable[float]) -> list[float]:
    """As floats, and -0.0, which is the whole number 0, as 0.0."""
    return [float(value) + 0.0 for value in values]


def _of_message(message: Any) -> Values:
    context, lists = message.context.feature, message.feature_lists.feature_list
    values: Values = {
        name: _numbers([*context[name].int64_list.value, *context[name].float_list.value])
        for name in (*INTEGERS, "segment_scores")
    }
    values["id"] = list(context["id" if "id" in context else "video_id"].bytes_list.value)
    for name in SIZES:
        values[name] = [value for frame in lists[name].feature for value in frame.bytes_list.value]
    return values


Parse = Callable[[bytes, dict[str, Any], list[str]], tuple[dict[str, Any], dict[str, Any]]]
"""Parses the context features of the given types and the lists of byte strings: values by name."""


def _by_operation(payload: bytes, message: Any, parse: Parse) -> Values | None:
    """What an operation of TensorFlow finds; None where it rejects the record.

    An operation has to be told the type of each feature: it is asked for the types that the record has.
    """
    kinds = (
        {} if message is None else {name: value.WhichOneof("kind") for name, value in message.context.feature.items()}
    )
    types = {name: tf.float32 if kinds.get(name) == "float_list" else tf.int64 for name in INTEGERS}
    types["segment_scores"] = tf.int64 if kinds.get("segment_scores") == "int64_list" else tf.float32
    # The older name of the id counts only where the newer one is missing. `message` may lack entries that are read here.
    for id_name in ("id", "video_id"):
        try:
            context, lists = parse(payload, types | {id_name: tf.string}, list(SIZES))
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError):  # The latter: of a message that quotes the record.
            return None
        if ids := context[id_name].numpy().tolist():
            break
    values: Values = {name: _numbers(context[name].numpy().tolist()) for name in types}
    return values | {"id": ids} | {name: lists[name].numpy().tolist() for name in SIZES}


def _parse_with_protobuf(
    payload: bytes, types: dict[str, Any], lists: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    found = tf.raw_ops.ParseSingleSequenceExample(
        serialized=payload,
        feature_list_dense_missing_assumed_empty=[],
        context_sparse_keys=list(types),
        context_sparse_types=list(types.values()),
        context_dense_keys=[],
        context_dense_defaults=[],
        context_dense_shapes=[],
        feature_list_sparse_keys=lists,
        feature_list_sparse_types=[tf.string] * len(lists),
        feature_list_dense_keys=[],
        feature_list_dense_types=[],
        feature_list_dense_shapes=[],
        debug_name="",
    )
    return (
        dict(zip(types, found.context_sparse_values, strict=True)),
        dict(zip(lists, found.feature_list_sparse_values, strict=True)),
    )


def _parse_with_own_parser(
    payload: bytes, types: dict[str, Any], lists: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    context, sequences = tf.io.parse_single_sequence_example(
        payload,
        {name: tf.io.VarLenFeature(kind) for name, kind in types.items()},
        {name: tf.io.VarLenFeature(tf.string) for name in lists},
    )
    return (
        {name: tensor.values for name, tensor in context.items()},
        {name: tensor.values for name, tensor in sequences.items()},
    )


# --- Forms ------------------------------------------------------------------------------------------------------------


def form_of(payload: bytes) -> str:
    """In which way a record differs from what writers produce: the first of several, or `WRITTEN`."""
    if parsed_by_python(payload, "SequenceExample") is None:
        return "damaged records"
    return next(_oddities(payload, tree(payload)), WRITTEN)


def _oddities(payload: bytes, record: Field) -> Iterator[str]:
    context, lists = ([field for field in record.children if field.is_message and field.number == n] for n in (1, 2))
    entries = [
        [entry for section in sections for entry in section.children if _is(entry, 1)] for sections in (context, lists)
    ]
    values = [[value for entry in of_section for value in entry.children if _is(value, 2)] for of_section in entries]
    features = values[0] + [feature for value in values[1] for feature in value.children if _is(feature, 1)]
    every_entry = entries[0] + entries[1]
    if any(not _is(child, 1, 2) for entry in every_entry for child in entry.children):
        yield "entries with unknown fields"
    if (
        any(not _is(field, 1, 2) for field in record.children)
        or any(not _is(entry, 1) for section in context + lists for entry in section.children)
        or any(not _is(feature, 1) for value in values[1] for feature in value.children)
        or any(not _is(kind, 1, 2, 3) for feature in features for kind in feature.children)
    ):
        yield "unknown fields"
    if any([child.number for child in entry.children] != [1, 2] for entry in every_entry):
        yield "entries other than a name and a value"
    if any(len(feature.children) > 1 for feature in features):
        yield "features of several lists"
    names = [
        [payload[entry.children[0].begin : entry.children[0].end] for entry in part if entry.children]
        for part in entries
    ]
    if any(len(set(of_section)) < len(of_section) for of_section in names):
        yield "repeated names"
    if len(context) > 1 or len(lists) > 1:
        yield "sections in several parts"
    message = parsed_by_python(payload, "SequenceExample")
    message.DiscardUnknownFields()
    if len(message.SerializeToString()) != len(payload):
        yield "numbers or lists in another encoding"


def _is(field: Field, *numbers: int) -> bool:
    return field.wire_type == 2 and field.number in numbers


# --- Command ----------------------------------------------------------------------------------------------------------


def count_differences(num_records: int, seed: int) -> Counter[str]:
    """Count the kinds of differences in mutated records."""
    counts: Counter[str] = Counter()
    for number in range(num_records):
        make = mutated_record if number % 2 else blind_record
        counts.update(differences(make(seed, number)) or ["no difference"])
        if number % 1000 == 0:
            print(f"\r{number:,} records", end="", file=sys.stderr, flush=True)
    return counts


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.differences", description=__doc__)
    parser.add_argument("--records", type=int, default=10_000, help="number of records")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random generator")
    arguments = parser.parse_args()
    counts = count_differences(arguments.records, arguments.seed)
    print(file=sys.stderr)
    for kind, count in sorted(counts.items()):
        print(f"{count:9,}  {kind}")


if __name__ == "__main__":
    main()
