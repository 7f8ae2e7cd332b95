"""Files that are no TFRecord files, and what to do about them."""

import re
import zlib

HEAD_BYTES = 4096

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (
        b"\x1f\x8b",
        "the file is compressed with GZIP; decompress it first (gunzip < FILE > NEW_FILE).",
    ),
    (b"PK\x03\x04", "the file is a ZIP archive; extract the shards first."),
    (b"BZh", "the file is compressed with bzip2; decompress it first."),
    (b"\x28\xb5\x2f\xfd", "the file is compressed with Zstandard; decompress it first."),
    (b"\xfd7zXZ\x00", "the file is compressed with xz; decompress it first."),
    (
        b"version https://git-lfs.github.com/spec/",
        "the file is a Git LFS pointer, not the shard itself; run `git lfs pull` in its repository.",
    ),
    (b"PAR1", "the file is a Parquet table, not a shard."),
)
_ZLIB = (
    'the file is compressed with ZLIB; decompress it first (python -c "import sys, zlib; '
    'sys.stdout.buffer.write(zlib.decompress(sys.stdin.buffer.read()))" < FILE > NEW_FILE).'
)
_EXAMPLE_KEYS = (b"\x02id", b"\x06labels", b"\x08video_id", b"\x08mean_rgb")
"""Keys of the context of an example, each after its length."""
_HTML = re.compile(rb"\s*(<!doctype html|<html|<\?xml|<head|<body|<error)", re.IGNORECASE)


def describe_foreign_file(data: bytes | memoryview) -> str | None:
    """Recognize a file that is no TFRecord file by its first bytes.

    Args:
        data: The file, or its beginning.

    Returns:
        A sentence that says what the file is and what to do; None where it is not recognized.
    """
    head = bytes(data[:HEAD_BYTES])
    is_zlib = head[:1] == b"\x78" and int.from_bytes(head[:2], "big") % 31 == 0 and _inflates(head)
    is_example = head[:1] == b"\n" and any(key in head for key in _EXAMPLE_KEYS)
    is_text = bool(head) and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)
    kinds = [
        *((head.startswith(signature), sentence) for signature, sentence in _SIGNATURES),
        (is_zlib, _ZLIB),
        (head[257:262] == b"ustar", "the file is a tar archive; extract the shards first."),
        (_HTML.match(head) is not None, "the file is a web page, such as a failed download leaves; download it again."),
        (
            is_example,
            "the file is one serialized example without the framing of a TFRecord file (length and checksums).",
        ),
        (is_text, "the file is text, not a TFRecord file."),
    ]
    return next((sentence for matches, sentence in kinds if matches), None)


def _inflates(head: bytes) -> bool:
    try:
        return bool(zlib.decompressobj().decompress(head, 1))
    except zlib.error:
        return False
