"""The official download: shards get their names once their MD5 is the plan's, and what is whole is remembered.

The plan, the parts and a ledger of what was verified lie beside the shards, so the same command goes on wherever the
last one was stopped, and neither fetches nor hashes again what is whole.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from yt8m.download.plan import PARTITIONS, Fraction, Server, Shard, read_plan, select
from yt8m.download.transfer import (
    Count,
    Crew,
    LastingError,
    Network,
    Part,
    Patience,
    hashed,
    in_words,
    part_path,
    publish,
    write_whole,
)
from yt8m.errors import UsageError, Yt8mError
from yt8m.runtime.progress import ProgressFactory, no_progress

PLAN_FILE = "download_plan.json"
LEDGER_FILE = "download_verified.tsv"

VOCABULARIES = {
    "vocabulary.csv": ("2/vocabulary.csv", 3862),
    "segment_vocabulary.csv": ("segments/vocabulary.csv", 1000),
}
"""Files of a dataset folder: where the server has them, and how many rows each has below its header."""

SPACE_MARGIN = 0.02
"""Share of the bytes to fetch that has to be free beyond them: the estimate is one, and catalogs come on top."""

MAX_SAMPLES = 32
"""Shards of a partition whose sizes are asked for, to estimate those of all."""

MAX_OUTAGES = 8
"""Shards given up in a row, with none fetched between them, after which the server counts as out of reach."""


@dataclass(frozen=True)
class FolderReport:
    """What a folder holds after the download.

    Args:
        partition: The official partition.
        folder: Its folder.
        num_shards: Shards that were asked for.
        num_whole: Those of them that are there and whole.
        num_bytes: Bytes of these.
        num_before: Those that were there and whole before.
    """

    partition: str
    folder: Path
    num_shards: int
    num_whole: int
    num_bytes: int
    num_before: int

    @property
    def is_frame_level(self) -> bool:
        """Whether the shards hold frames, so that the folder can be indexed."""
        return "/frame/" in self.partition


class _Ledger:
    """Which shards of a folder were found whole: a line each with name, MD5, size in bytes and time of change in ns.

    Lines are only ever appended. One that was cut off by the end of a process says nothing, and its shard is hashed
    again. The open ledger is also the lock of its folder.

    Raises:
        Yt8mError: Another process is at work in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / LEDGER_FILE).open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise Yt8mError(f"{folder}: another download is at work in this folder; wait for its end.") from None
        except OSError as error:
            # Some network file systems have no locks; a download into them is not refused for that.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        self._file.seek(0)
        text = self._file.read().decode(errors="replace")
        if text and not text.endswith("\n"):
            self._append("\n")
        lines = (line.split("\t") for line in text.splitlines())
        self._known = {fields[0]: tuple(fields[1:]) for fields in lines}

    def __enter__(self) -> _Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def knows(self, shard: Shard) -> bool:
        """Say whether a shard was found whole and has not changed since."""
        path = self._folder / shard.name
        return path.is_file() and self._known.get(shard.name) == _state(path, shard)

    def add(self, shard: Shard) -> None:
        """Remember that a shard is whole."""
        state = _state(self._folder / shard.name, shard)
        if self._known.get(shard.name) != state:
            self._append("\t".join((shard.name, *state)) + "\n")
            self._known[shard.name] = state

    def _append(self, text: str) -> None:
        self._file.write(text.encode())
        self._file.flush()


def _state(path: Path, shard: Shard) -> tuple[str, ...]:
    status = path.stat()
    return shard.md5, str(status.st_size), str(status.st_mtime_ns)


@dataclass(frozen=True)
class _Failure:
    """Why a shard is not there, and whether the server was out of reach."""

    reason: str
    is_outage: bool


@dataclass
class _Folder:
    """A partition on its way.

    Args:
        partition: Its official name.
        path: Its folder.
        shards: Those asked for.
        ledger: What is whole of it.
        missing: Shards that are not, once that is known.
        num_bytes: About how many bytes the missing ones have, where known.
    """

    partition: str
    path: Path
    shards: list[Shard]
    ledger: _Ledger
    missing: list[Shard] = field(default_factory=list)
    num_bytes: int | None = None

    def report(self, num_before: int) -> FolderReport:
        missing = set(self.missing)
        sizes = [(self.path / shard.name).stat().st_size for shard in self.shards if shard not in missing]
        return FolderReport(self.partition, self.path, len(self.shards), len(sizes), sum(sizes), num_before)

    def part_bytes(self) -> int:
        """Bytes that are there of the missing shards."""
        parts = [part_path(self.path / shard.name) for shard in self.missing]
        return sum(part.stat().st_size for part in parts if part.exists())


def download(
    data: Path,
    partitions: Sequence[str],
    server: Server,
    *,
    fraction: Fraction | None = None,
    listed: Path | None = None,
    connections: int = 4,
    check: bool = False,
    patience: Patience | None = None,
    pause: Callable[[float], object] | None = None,
    progress: ProgressFactory = no_progress,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[FolderReport]:
    """Fetch partitions of the dataset into a dataset folder, or what is missing of them.

    Args:
        data: The dataset folder.
        partitions: Keys of `PARTITIONS`.
        server: Where they come from.
        fraction: Only this part of each.
        listed: Only the shards that this file names.
        connections: Shards to fetch at once.
        check: Whether to fetch the plans and to hash the shards again that were found whole before.
        patience: How long to bear with the server.
        pause: Waits for some seconds between tries, for tests.
        progress: Reports bytes hashed and fetched.
        say: Told, in a sentence, when a shard that was there is wrong.

    Yields:
        What each folder holds, when all that could be had of it is there.

    Raises:
        UsageError: The folder is a file, a partition is unknown, or the selection is empty or names unknown shards.
        Yt8mError: A plan is none, the disk has too little space, or some files could not be fetched (raised at the end).
    """
    unknown = [partition for partition in partitions if partition not in PARTITIONS]
    if unknown:
        raise UsageError(f"{unknown[0]}: is no partition of the dataset; expected one of {', '.join(PARTITIONS)}.")
    if data.exists() and not data.is_dir():
        raise UsageError(f"{data}: is a file; expected a dataset folder, or the name of one to make.")
    crew = Crew(connections)
    network = Network(server.shards, crew, patience or Patience(), pause)
    with ExitStack() as stack:
        stack.enter_context(_disk_errors_in_words(data))
        stack.callback(network.close)
        plans = {name: _plan(network, server, data, name, check) for name in dict.fromkeys(partitions)}
        chosen = select({name: plan.shards for name, plan in plans.items()}, fraction, listed)
        folders = []
        for name, shards in chosen.items():
            path = data / PARTITIONS[name]
            path.mkdir(parents=True, exist_ok=True)
            folders.append(_Folder(name, path, shards, stack.enter_context(_Ledger(path))))
            _keep_plan(path / PLAN_FILE, plans[name])
        # The crew stops before the folders' locks are given back.
        stack.callback(crew.stop)
        failures = _fetch_vocabularies(network, server, data)
        for folder in folders:
            _find_missing(folder, crew, check, progress, say)
            _estimate(folder, network, server, crew)
        _require_space(folders)
        for folder in folders:
            num_before = len(folder.shards) - len(folder.missing)
            failures += _fetch_missing(folder, network, server, crew, progress)
            yield folder.report(num_before)
        if failures:
            num_files = sum(len(folder.shards) for folder in folders) + len(VOCABULARIES)
            more = f" and {len(failures) - 1:,} more" if len(failures) > 1 else ""
            raise Yt8mError(
                f"{data}: {len(failures):,} of {num_files:,} files could not be fetched, {failures[0]}{more}; the same "
                "command goes on with what is missing."
            )


@dataclass(frozen=True)
class _Plan:
    """The shards of a partition, and the plan's bytes where it is not the one that the folder keeps already."""

    shards: tuple[Shard, ...]
    content: bytes | None


def _plan(network: Network, server: Server, data: Path, partition: str, anew: bool) -> _Plan:
    kept = data / PARTITIONS[partition] / PLAN_FILE
    if kept.is_file() and not anew:
        # One that is damaged is fetched again.
        with suppress(Yt8mError):
            return _Plan(read_plan(kept.read_bytes(), str(kept)), None)
    url = server.plan_url(partition)
    try:
        content = network.small(url)
    except LastingError as error:
        raise Yt8mError(f"{url}: the plan of {partition} could not be fetched ({error}).") from None
    return _Plan(read_plan(content, url), content)


def _keep_plan(path: Path, plan: _Plan) -> None:
    if plan.content is None:
        part_path(path).unlink(missing_ok=True)
    else:
        write_whole(path, plan.content)


def _fetch_vocabularies(network: Network, server: Server, data: Path) -> list[str]:
    """Fetch the vocabularies that are not there; return which could not be had, and why."""
    failures = []
    for name, (place, num_rows) in VOCABULARIES.items():
        if (data / name).exists():
            continue
        url = f"{server.vocabularies}/{place}"
        try:
            content = network.small(url)
            rows = list(csv.reader(content.decode().splitlines()))
        except (LastingError, UnicodeDecodeError, csv.Error) as error:
            failures.append(f"{data / name} ({url}: {error})")
            continue
        if rows[:1] and rows[0][:1] == ["Index"] and len(rows) == 1 + num_rows:
            write_whole(data / name, content)
        else:
            found = f"a first column {rows[0][0]!r:.40}" if rows and rows[0] else "no header"
            failures.append(
                f"{data / name} ({url}: expected a column Index and {num_rows:,} rows below it, "
                f"found {found} and {max(0, len(rows) - 1):,} rows)"
            )
    return failures


def _find_missing(
    folder: _Folder, crew: Crew, check: bool, progress: ProgressFactory, say: Callable[[str], None]
) -> None:
    """Find out which shards are missing; those that nothing is known of are hashed."""
    whole = {shard for shard in folder.shards if not check and folder.ledger.knows(shard)}
    doubtful = [shard for shard in folder.shards if shard not in whole and (folder.path / shard.name).exists()]
    total = sum((folder.path / shard.name).stat().st_size for shard in doubtful)
    count = Count()
    num_hashed = 0

    def md5_of(shard: Shard) -> str:
        return hashed(folder.path / shard.name, crew, count)[0].hexdigest()

    def tick() -> None:
        report(count.num_bytes, total, f"{num_hashed:,}/{len(doubtful):,} shards")

    with progress(f"check {folder.path}", total, "bytes") as report:
        for shard, md5 in crew.each(md5_of, doubtful, tick):
            num_hashed += 1
            if md5 == shard.md5:
                folder.ledger.add(shard)
                whole.add(shard)
            else:
                say(f"{folder.path / shard.name}: its MD5 is {md5}, the plan says {shard.md5}; it is fetched again.")
    for shard in whole:
        part_path(folder.path / shard.name).unlink(missing_ok=True)
    folder.missing = [shard for shard in folder.shards if shard not in whole]


def _estimate(folder: _Folder, network: Network, server: Server, crew: Crew) -> None:
    """Estimate the bytes of the missing shards from the sizes of some, evenly spread; unknown where none is known."""
    num_samples = min(MAX_SAMPLES, len(folder.missing))
    samples = [folder.missing[position * len(folder.missing) // num_samples] for position in range(num_samples)]
    urls = [server.shard_url(folder.partition, shard) for shard in samples]
    answers = crew.each(network.size_of, urls, lambda: None)
    sizes = [size for _, size in answers if size is not None]
    folder.num_bytes = math.ceil(sum(sizes) / len(sizes) * len(folder.missing)) if sizes else None


def _require_space(folders: Sequence[_Folder]) -> None:
    """Refuse to begin what the disk has no space for. Folders may lie on several disks.

    Raises:
        Yt8mError: There is too little.
    """
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for folder in folders:
        if folder.num_bytes is not None:
            disk = folder.path.stat().st_dev
            needed[disk] = needed.get(disk, 0) + max(0, folder.num_bytes - folder.part_bytes())
            places.setdefault(disk, folder.path)
    for disk, path in places.items():
        free = shutil.disk_usage(path).free
        if needed[disk] * (1 + SPACE_MARGIN) > free:
            raise Yt8mError(
                f"{path}: about {in_words(needed[disk])} are still to be fetched to this disk, and {in_words(free)} are "
                "free; free some space, or fetch a part with --shard or --list."
            )


def _fetch_missing(
    folder: _Folder, network: Network, server: Server, crew: Crew, progress: ProgressFactory
) -> list[str]:
    """Fetch the missing shards; return which could not be had, and why.

    Raises:
        Yt8mError: The server is out of reach.
    """
    count = Count()
    count.add(folder.part_bytes())
    num_all, num_missing = len(folder.shards), len(folder.missing)
    num_tried = num_outages = 0

    def fetch(shard: Shard) -> _Failure | None:
        path = folder.path / shard.name
        try:
            network.fetch(server.shard_url(folder.partition, shard), Part(path, crew, count), shard.md5)
        except LastingError as error:
            return _Failure(str(error), error.is_outage)
        crew.check()
        publish(path)
        return None

    def tick() -> None:
        total = None if folder.num_bytes is None else max(folder.num_bytes, count.num_bytes)
        report(count.num_bytes, total, f"{num_all - num_missing + num_tried:,}/{num_all:,} shards")

    failed: dict[Shard, str] = {}
    with progress(f"fetch {folder.path}", None, "bytes") as report:
        for shard, failure in crew.each(fetch, folder.missing, tick):
            num_tried += 1
            if failure is None:
                folder.ledger.add(shard)
                num_outages = 0
                continue
            failed[shard] = f"{folder.path / shard.name} ({failure.reason})"
            num_outages += failure.is_outage
            if num_outages == MAX_OUTAGES:
                raise Yt8mError(
                    f"{failed[shard]}: {num_outages} shards in a row could not be fetched, and the rest was not tried; "
                    "the same command goes on when the server can be reached."
                )
    folder.missing = [shard for shard in folder.missing if shard in failed]
    return list(failed.values())


@contextmanager
def _disk_errors_in_words(data: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Yt8mError(
                f"{data}: no space left on the disk; what was fetched is kept, and after some space was freed the same "
                "command goes on."
            ) from error
        raise Yt8mError(f"{error.filename or data}: {error.strerror or error}.") from error
