"""Partitions of the official dataset, their servers, and download plans: lists of shards with their MD5s.

Plans are not trusted: their names become file names, so they are validated. Nothing here accesses the network.
"""

import hashlib
import json
import re
import string
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import unquote, urlsplit, urlunsplit

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import read_names

PARTITIONS = {
    "2/frame/train": "video/train",
    "2/frame/validate": "video/valid",
    "2/frame/test": "video/test",
    "2/video/train": "video_level/train",
    "2/video/validate": "video_level/validate",
    "2/video/test": "video_level/test",
    "3/frame/validate": "segment/train",
    "3/frame/test": "segment/test",
}
"""Partitions of the official dataset (version/level/split), and the folder of each in a dataset folder."""

DEFAULT_PARTITIONS = ("2/frame/train", "2/frame/validate", "3/frame/validate", "3/frame/test")
"""The partitions that training and prediction need."""

MIRRORS = ("us", "eu", "asia")

_ALPHABET = string.ascii_lowercase + string.ascii_uppercase + string.digits
_PLAN_NAME = re.compile(r"\w[\w.-]{0,199}\.tfrecord", re.ASCII)
_MD5 = re.compile(r"[0-9a-fA-F]{32}")


@dataclass(frozen=True)
class Shard:
    """A shard of a plan.

    Args:
        name: File name.
        plan_name: Name on the server.
        md5: MD5 of its bytes, in lower-case hexadecimal digits.
    """

    name: str
    plan_name: str
    md5: str


@dataclass(frozen=True)
class Server:
    """A download server: the prefixes of the addresses of plans, shards and vocabularies."""

    plans: str
    shards: str
    vocabularies: str
    authorization: str | None = field(default=None, repr=False)
    """The header of this name, which contains a password."""

    def plan_url(self, partition: str) -> str:
        """Address of the plan of a partition."""
        version, level, split = partition.split("/")
        return f"{self.plans}/{version}/download_plans/{level}_{split}.json"

    def shard_url(self, partition: str, shard: Shard) -> str:
        """Address of a shard."""
        return f"{self.shards}/{partition}/{shard.plan_name}"


def official_server(mirror: str = "us") -> Server:
    """The official servers.

    They are public buckets of Google Cloud Storage, named after the hosts that serve them over plain HTTP
    (`us.data.yt8m.org`). They are accessed through the storage's own host, which has TLS: plain HTTP would allow shards
    and MD5s to be tampered with together.

    Raises:
        UsageError: There is no such mirror.
    """
    if mirror not in MIRRORS:
        raise UsageError(f"--mirror {mirror}: expected one of {', '.join(MIRRORS)}.")
    storage = "https://storage.googleapis.com"
    return Server(
        f"{storage}/data.yt8m.org", f"{storage}/{mirror}.data.yt8m.org", "https://research.google.com/youtube8m/csv"
    )


def other_server(url: str) -> Server:
    """A server with the official layout, such as a local mirror.

    Args:
        url: Prefix, with a name and a password if the server asks for them, of 2/download_plans/frame_train.json, 2/frame/train/NAME, csv/2/vocabulary.csv, and so on.

    Raises:
        UsageError: It is no http or https address.
    """
    base = url.rstrip("/")
    try:
        parts = urlsplit(base)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.query or parts.fragment:
        raise UsageError(f"--server {_without_secrets(url)}: expected an address such as https://host/path.")
    login, separator, host = parts.netloc.rpartition("@")
    if not separator:
        return Server(base, base, f"{base}/csv")
    # The secret travels in a header, so that no address in a message contains it.
    base = urlunsplit(parts._replace(netloc=host))
    name, _, password = login.partition(":")
    credentials = b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    return Server(base, base, f"{base}/csv", f"Basic {credentials}")


def _without_secrets(url: str) -> str:
    """An address, valid or not, without what may be a password or a token."""
    return re.sub(r"[?#].*", "", re.sub(r"(//|^).*@", r"\1***@", url))


def local_name(plan_name: str) -> str:
    """File name of a shard, as the official script stores it, so that names differ in more than case.

    Names in plans end in two characters of a-z, A-Z, 0-9, which number the shards: `trainaa.tfrecord` becomes
    `train0000.tfrecord`, `train00.tfrecord` becomes `train3276.tfrecord`. Other names do not change.
    """
    stem = plan_name.removesuffix(".tfrecord")
    first, second = (_ALPHABET.find(character) for character in stem[-2:].rjust(2))
    if first < 0 or second < 0:
        return plan_name
    return f"{stem[:-2]}{first * len(_ALPHABET) + second:04d}.tfrecord"


def read_plan(content: bytes, source: str) -> tuple[Shard, ...]:
    """Parse and validate a download plan.

    Args:
        content: JSON, `{"files": {NAME: MD5, ...}}`.
        source: Where it comes from, for messages.

    Returns:
        The shards, sorted by name.

    Raises:
        Yt8mError: It is no plan, or contains an invalid name or MD5.
    """
    try:
        plan = json.loads(content, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise Yt8mError(f"{source}: is no download plan ({error or 'nested too deeply'}).") from None
    files = plan.get("files") if isinstance(plan, dict) else None
    if not isinstance(files, dict) or not files:
        raise Yt8mError(f'{source}: is no download plan; expected JSON with an object "files" of names and MD5s.')
    shards: dict[str, Shard] = {}
    for plan_name, md5 in files.items():
        if not _PLAN_NAME.fullmatch(plan_name):
            raise Yt8mError(
                f"{source}: contains {plan_name[:200]!r}, which is no name of a shard (such as train00.tfrecord)."
            )
        if not isinstance(md5, str) or not _MD5.fullmatch(md5):
            raise Yt8mError(f"{source}: the MD5 of {plan_name} is {md5!r:.60}, expected 32 hexadecimal digits.")
        shard = Shard(local_name(plan_name), plan_name, md5.lower())
        # On some file systems, names that differ in case only are the same.
        other = shards.setdefault(shard.name.lower(), shard)
        if other is not shard:
            raise Yt8mError(f"{source}: {other.plan_name} and {plan_name} would be the same file, {shard.name}.")
    return tuple(sorted(shards.values(), key=lambda shard: shard.name))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in it")
    return found


@dataclass(frozen=True)
class Fraction:
    """A fraction of a plan: the names whose MD5 modulo `count` is `number - 1`.

    These are the names of the official script's `shard=number,count`.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `NUMBER/COUNT`.

        Raises:
            UsageError: It is malformed, or the number is not in 1 to count.
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--shard {text}: expected NUMBER/COUNT with NUMBER from 1 to COUNT, such as 1/100.")
        return cls(int(match[1]), int(match[2]))

    def contains(self, plan_name: str) -> bool:
        """Whether a shard, by its name in the plan, belongs to the fraction."""
        digest = hashlib.md5(plan_name.encode(), usedforsecurity=False).hexdigest()
        return int(digest, 16) % self.count == self.number - 1


def select(
    plans: Mapping[str, Sequence[Shard]], fraction: Fraction | None, listed: Path | None
) -> dict[str, list[Shard]]:
    """Select the shards to fetch.

    Args:
        plans: The shards of each partition.
        fraction: Only this fraction of each plan; all where None.
        listed: Only the shards named in this file (see `files.read_names`); all where None. A name without a folder
            matches in every partition.

    Returns:
        Selected shards of each partition that has any, in the order of the plan.

    Raises:
        UsageError: The list cannot be read or names a shard that is in no plan, or nothing is selected.
    """
    chosen = {partition: list(shards) for partition, shards in plans.items()}
    if listed is not None:
        chosen = _listed(plans, listed)
    if fraction is not None:
        chosen = {
            name: [shard for shard in shards if fraction.contains(shard.plan_name)] for name, shards in chosen.items()
        }
    chosen = {partition: shards for partition, shards in chosen.items() if shards}
    if not chosen:
        total = sum(len(shards) for shards in plans.values())
        raise UsageError(f"None of the {total:,} shards of {', '.join(plans)} is selected by --shard and --list.")
    return chosen


def _listed(plans: Mapping[str, Sequence[Shard]], path: Path) -> dict[str, list[Shard]]:
    wanted: dict[str, set[Shard]] = {partition: set() for partition in plans}
    tables = {
        partition: {shard.plan_name: shard for shard in shards} | {shard.name: shard for shard in shards}
        for partition, shards in plans.items()
    }
    unknown = []
    for name in read_names(path, "shards"):
        entry = PurePosixPath(name)
        folder, found = str(entry.parent), False
        for partition, table in tables.items():
            if entry.name in table and folder in (".", partition, PARTITIONS[partition]):
                wanted[partition].add(table[entry.name])
                found = True
        if not found:
            unknown.append(str(entry))
    if unknown:
        more = f" and {len(unknown) - 3:,} more" if len(unknown) > 3 else ""
        raise UsageError(f"{path}: not in the plans of {', '.join(plans)}: {', '.join(unknown[:3])}{more}.")
    return {partition: [shard for shard in shards if shard in wanted[partition]] for partition, shards in plans.items()}
