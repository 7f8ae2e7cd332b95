"""Names of segments: `video:start`, of the id of a video that a submission can hold and a multiple of 5 seconds."""

import re

SEGMENT_SECONDS = 5
"""Length of a segment, in seconds, which is also its number of frames."""

MAX_ID_BYTES = 64

ID_BYTE = rb"[^\s,:\x00]"
"""A byte of an id in a submission: neither white space nor a separator."""

_ID = re.compile(ID_BYTE + rb"++")


def id_fault(raw: bytes) -> str | None:
    """Why an id cannot be used, as the end of a sentence; None where it can be.

    Args:
        raw: The id, or at least its first 65 bytes.
    """
    if not 0 < len(raw) <= MAX_ID_BYTES:
        return f"is not one of 1 to {MAX_ID_BYTES} bytes"
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "is not UTF-8"
    if not _ID.fullmatch(raw) or not text.isprintable():
        return "contains a comma, a colon, white space or a control character"
    return None
