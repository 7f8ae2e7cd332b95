"""Errors are sentences for the person at the keyboard: what was read, where, what was expected, what to do.

Every error that the command line shows without a traceback derives from `Yt8mError`; its `exit_code` becomes the
exit status of the command. Anything else that escapes is a defect and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class Yt8mError(Exception):
    """A failure while doing what was asked: unreadable data, a full disk, a mismatch found on the way."""

    exit_code = 1


class UsageError(Yt8mError):
    """What was asked cannot be done as asked: a missing folder, a misspelt key, an impossible value."""

    exit_code = 2


class Interrupted(Yt8mError):  # noqa: N818 - asked for, no error
    """The work was asked to stop, has saved where it stands, and goes on with the same command."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: not done, try again."""


class ShardError(Yt8mError):
    """A shard that cannot be read as what it should be.

    Args:
        path: The shard.
        message: What was found and what was expected, without the place.
        record: Number of the record in the shard, from 0, where known.
        offset: Byte offset in the shard, where known.
    """

    def __init__(self, path: Path, message: str, *, record: int | None = None, offset: int | None = None) -> None:
        place = [str(path)]
        if record is not None:
            place.append(f"record {record}")
        if offset is not None:
            place.append(f"byte {offset}")
        super().__init__(f"{', '.join(place)}: {message}")
        self.path = path
        self.record = record
        self.offset = offset
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword arguments when a loader's worker process passes the error on."""
        return _rebuild_shard_error, (self.path, self.message, self.record, self.offset)


def _rebuild_shard_error(path: Path, message: str, record: int | None, offset: int | None) -> ShardError:
    return ShardError(path, message, record=record, offset=offset)
