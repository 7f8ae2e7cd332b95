"""Names of shards."""

import re

SHARD_NAMES = "*.tfrecord, *.tfrecords or NAME-00000-of-00100"
"""Names of shards, for messages."""

_SHARD_NAME = re.compile(r"[^./][^/]*?(\.tfrecords?(-\d+-of-\d+)?|-\d+-of-\d+(\.tfrecords?)?)")


def is_shard_name(name: str) -> bool:
    """Whether a file name is that of a shard; hidden files, such as shards being written, are not."""
    return _SHARD_NAME.fullmatch(name) is not None
