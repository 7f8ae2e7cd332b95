"""Errors with exit codes. A message is one sentence: what was read, where, what was expected, what to do.

The command line shows a `Yt8mError` without a traceback and exits with its `exit_code`. Any other exception that escapes
is a bug and keeps its traceback.
"""

import re
from functools import partial
from pathlib import Path


class Yt8mError(Exception):
    """A failure during the work: unreadable data, a full disk, files that do not match."""

    exit_code = 1


class UsageError(Yt8mError):
    """A request that cannot be fulfilled: a missing folder, a misspelt key, an impossible value."""

    exit_code = 2


class Interrupted(Yt8mError):  # noqa: N818 - requested, no error
    """The process received a signal to stop and saved its state; the same command resumes the work."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: not done, try again."""


class Stopped(BaseException):
    """The process received a signal to stop where there is no state to save; see `yt8m.runtime.signals`.

    No `Yt8mError`, since code that continues after a failure must not continue after this.
    """

    exit_code = Interrupted.exit_code


class ShardError(Yt8mError):
    """A shard that cannot be read in the expected format.

    Args:
        path: The shard.
        message: What was found and what was expected, without the location.
        record: Number of the record in the shard, from 0, if known.
        offset: Byte offset in the shard, if known.
    """

    def __init__(self, path: Path, message: str, *, record: int | None = None, offset: int | None = None) -> None:
        location = [str(path)]
        if record is not None:
            location.append(f"record {record}")
        if offset is not None:
            location.append(f"byte {offset}")
        super().__init__(f"{', '.join(location)}: {message}")
        self.path = path
        self.record = record
        self.offset = offset
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword arguments when a data loader's worker process pickles the error."""
        return partial(ShardError, record=self.record, offset=self.offset), (self.path, self.message)


def reason_of(error: BaseException) -> str:
    """The text of an error on one line, for parentheses in a message; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
"""Control characters, which terminals obey; line and paragraph separators; changes of direction; no characters."""


def printable(text: str, kept: str = "") -> str:
    """A text from a file, for a terminal or XML: each character that is no text becomes U+FFFD, except those kept."""
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in kept else "\ufffd", text)


def counted(number: int, noun: str) -> str:
    """A number with its noun, for messages: `1 video`, `2,000 videos`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
