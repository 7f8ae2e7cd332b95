"""Files that are no TFRecord files are recognized, and the error names the format and the remedy."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from tests.support.command import yt8m as command
from tests.support.tiny_shards import random_videos, write_shard
from yt8m.dataset.catalog import Catalog
from yt8m.shards.foreign import describe_foreign_file

SHARD = b"".join((video.encoded() + b"\0" * 16) for video in random_videos(3))
"""Bytes similar to those of a shard."""


def tar_of(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("train0000.tfrecord")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def zip_of(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train0000.tfrecord", content)
    return file.getvalue()


LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
FOREIGN = {
    "gzip": (gzip.compress(SHARD), "is compressed with GZIP; decompress it first (gunzip "),
    "zlib": (zlib.compress(SHARD), "is compressed with ZLIB; decompress it first (python "),
    "zlib, fastest": (zlib.compress(SHARD, 1), "is compressed with ZLIB"),
    "zlib, smallest": (zlib.compress(SHARD, 9), "is compressed with ZLIB"),
    "bzip2": (bz2.compress(SHARD), "is compressed with bzip2"),
    "xz": (lzma.compress(SHARD), "is compressed with xz"),
    "zip": (zip_of(SHARD), "is a ZIP archive; extract the shards first"),
    "tar": (tar_of(SHARD), "is a tar archive; extract the shards first"),
    "pointer": (LFS_POINTER, "is a Git LFS pointer, not the shard itself; run `git lfs pull`"),
    "web page": (b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>", "is a web page"),
    "error of a bucket": (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "is a web page"),
    "raw example": (random_videos(1)[0].encoded(), "is one serialized example without the framing of a TFRecord file"),
    "Parquet": (b"PAR1" + bytes(100), "is a Parquet table"),
    "text": (b"id,labels\nabcd,3\n" * 3, "is text, not a TFRecord file"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_recognized(kind: str) -> None:
    content, expected = FOREIGN[kind]
    message = describe_foreign_file(content)
    assert message is not None
    assert message.startswith(f"the file {expected}")
    assert message.endswith(".")


def test_shards_and_damaged_shards_are_no_foreign_files(tmp_path: Path) -> None:
    content = write_shard(tmp_path / "a.tfrecord", random_videos(3)).read_bytes()
    assert describe_foreign_file(content) is None
    assert describe_foreign_file(bytes([content[0] ^ 255]) + content[1:]) is None
    assert describe_foreign_file(b"") is None
    assert describe_foreign_file(b"\x78\x9c" + bytes(100)) is None  # the header of ZLIB, followed by something else


@pytest.mark.parametrize("kind", FOREIGN)
def test_index_reports_a_foreign_file_and_indexes_the_other_shards(kind: str, tmp_path: Path) -> None:
    content, expected = FOREIGN[kind]
    (tmp_path / "a.tfrecord").write_bytes(content)
    write_shard(tmp_path / "b.tfrecord", random_videos(2))
    outcome = command("index", tmp_path)
    assert outcome.status == 1
    problem, summary = outcome.err.splitlines()
    assert problem.startswith(f"{tmp_path / 'a.tfrecord'}, record 0, byte 0: the file {expected}")
    assert summary == f"yt8m: {tmp_path}: 1 damaged place was skipped, as listed above."
    assert len(Catalog.load(tmp_path)) == 2


def test_the_commands_of_the_messages_restore_a_shard(tmp_path: Path) -> None:
    """The messages for GZIP and ZLIB contain a command that decompresses the file."""
    shard = write_shard(tmp_path / "shard", random_videos(2)).read_bytes()
    for kind, compress in (("gzip", gzip.compress), ("zlib", zlib.compress)):
        (tmp_path / "FILE").write_bytes(compress(shard))
        message = describe_foreign_file(compress(shard))
        assert message is not None
        script = message[message.index("(") + 1 : message.rindex(")")].replace("python ", "python3 ")
        subprocess.run(script, shell=True, cwd=tmp_path, check=True)
        assert (tmp_path / "NEW_FILE").read_bytes() == shard, kind
