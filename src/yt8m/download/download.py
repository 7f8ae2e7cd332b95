"""Download the official dataset: shards get their final name once their MD5 matches the plan.

The plan, partial files and a ledger of verified shards are beside the shards, so the same command resumes an interrupted
download, and neither fetches nor hashes complete shards again.
"""

import csv
import errno
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from yt8m.download.partial import (
    Counter,
    Part,
    StoppableThreads,
    hash_file,
    part_path,
    publish,
    write_complete,
)
from yt8m.download.plan import PARTITIONS, Fraction, Server, Shard, read_plan, select
from yt8m.download.transfer import Network, PermanentError, RetryPolicy
from yt8m.errors import UsageError, Yt8mError
from yt8m.runtime.console import format_bytes
from yt8m.runtime.locks import locked
from yt8m.runtime.progress import ProgressFactory, no_progress

PLAN_FILE = "download_plan.json"
LEDGER_FILE = "download_verified.tsv"

VOCABULARIES = {
    "vocabulary.csv": ("2/vocabulary.csv", 3862),
    "segment_vocabulary.csv": ("segments/vocabulary.csv", 1000),
}
"""Files of a dataset folder: their path on the server, and their number of rows below the header."""

SPACE_MARGIN = 0.02
"""Free space needed beyond the bytes to fetch, as a fraction of them: their number is estimated, and catalogs need space."""

MAX_SAMPLES = 32
"""Shards of a partition whose sizes are requested, to estimate the total."""

MAX_OUTAGES = 8
"""Consecutive shards that fail after which the server counts as unreachable."""


@dataclass(frozen=True)
class FolderReport:
    """Content of a folder after the download.

    Args:
        partition: The official partition.
        folder: Its folder.
        num_shards: Shards selected.
        num_complete: Those of them that are complete.
        num_bytes: Bytes of these.
        num_before: Those that were complete before.
    """

    partition: str
    folder: Path
    num_shards: int
    num_complete: int
    num_bytes: int
    num_before: int

    @property
    def is_frame_level(self) -> bool:
        """Whether the shards contain frames, so that the folder can be indexed."""
        return "/frame/" in self.partition


class _Ledger:
    """The verified shards of a folder, one per line: name, MD5, size in bytes and modification time in ns.

    Lines are only appended. A line that was cut off by a kill is ignored, and its shard hashed again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / LEDGER_FILE).open("a+b")
        self._file.seek(0)
        text = self._file.read().decode(errors="replace")
        if text and not text.endswith("\n"):
            self._append("\n")
        lines = (line.split("\t") for line in text.splitlines())
        self._known = {fields[0]: tuple(fields[1:]) for fields in lines}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def contains(self, shard: Shard) -> bool:
        """Whether a shard was verified and has not changed since."""
        path = self._folder / shard.name
        return path.is_file() and self._known.get(shard.name) == _state(path, shard)

    def add(self, shard: Shard) -> None:
        """Record that a shard is complete."""
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
    """Why a shard could not be fetched, and whether the server was unreachable."""

    reason: str
    is_outage: bool


@dataclass
class _Folder:
    """A partition being downloaded.

    Args:
        partition: Its official name.
        path: Its folder.
        shards: The shards selected.
        ledger: The complete ones.
        missing: The incomplete ones, once known.
        num_bytes: Estimated bytes of the missing ones; None where unknown.
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
        """Bytes of the missing shards that have arrived."""
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
    policy: RetryPolicy | None = None,
    pause: Callable[[float], object] | None = None,
    progress: ProgressFactory = no_progress,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[FolderReport]:
    """Download partitions of the dataset into a dataset folder, or the missing shards of them.

    Args:
        data: The dataset folder.
        partitions: Keys of `PARTITIONS`.
        server: The server.
        fraction: Only this fraction of each.
        listed: Only the shards named in this file.
        connections: Shards to fetch at once.
        check: Whether to fetch the plans again and hash verified shards again.
        policy: Timeouts and retries.
        pause: Waits for a number of seconds between attempts, for tests.
        progress: Reports bytes hashed and fetched.
        report: Called with a message for each existing shard whose MD5 is wrong.

    Yields:
        A report on each folder, when all of it that can be fetched is there.

    Raises:
        UsageError: The folder is a file, a partition is unknown, or the selection is empty or names unknown shards.
        Yt8mError: A plan is invalid, the disk has too little space, or some files could not be fetched (raised last).
    """
    unknown = [partition for partition in partitions if partition not in PARTITIONS]
    if unknown:
        raise UsageError(f"{unknown[0]}: is not a partition of the dataset; expected one of {', '.join(PARTITIONS)}.")
    if data.exists() and not data.is_dir():
        raise UsageError(f"{data}: is a file; expected a dataset folder, or the name of a new one.")
    threads = StoppableThreads(connections)
    network = Network(server.shards, threads, policy or RetryPolicy(), pause, server.authorization)
    with ExitStack() as stack:
        stack.enter_context(_disk_errors_as_sentences(data))
        stack.callback(network.close)
        plans = {name: _plan(network, server, data, name, check) for name in dict.fromkeys(partitions)}
        chosen = select({name: plan.shards for name, plan in plans.items()}, fraction, listed)
        folders = []
        for name, shards in chosen.items():
            path = data / PARTITIONS[name]
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path))
            folders.append(_Folder(name, path, shards, stack.enter_context(_Ledger(path))))
            _save_plan(path / PLAN_FILE, plans[name])
        # The threads stop before the folders' locks are released.
        stack.callback(threads.stop)
        failures = _fetch_vocabularies(network, server, data)
        for folder in folders:
            _find_missing(folder, threads, check, progress, report)
            _estimate(folder, network, server, threads)
        _require_space(folders)
        for folder in folders:
            num_before = len(folder.shards) - len(folder.missing)
            failures += _fetch_missing(folder, network, server, threads, progress)
            yield folder.report(num_before)
        if failures:
            num_files = sum(len(folder.shards) for folder in folders) + len(VOCABULARIES)
            more = f" and {len(failures) - 1:,} more" if len(failures) > 1 else ""
            raise Yt8mError(
                f"{data}: {len(failures):,} of {num_files:,} files could not be fetched, {failures[0]}{more}; the same "
                "command continues with the missing ones."
            )


@dataclass(frozen=True)
class _Plan:
    """The shards of a partition, and the plan's bytes where the folder does not have this plan already."""

    shards: tuple[Shard, ...]
    content: bytes | None


def _plan(network: Network, server: Server, data: Path, partition: str, refresh: bool) -> _Plan:
    kept = data / PARTITIONS[partition] / PLAN_FILE
    if kept.is_file() and not refresh:
        # A damaged plan is fetched again.
        with suppress(Yt8mError):
            return _Plan(read_plan(kept.read_bytes(), str(kept)), None)
    url = server.plan_url(partition)
    try:
        content = network.small(url)
    except PermanentError as error:
        raise Yt8mError(f"{url}: the plan of {partition} could not be fetched ({error}).") from None
    return _Plan(read_plan(content, url), content)


def _save_plan(path: Path, plan: _Plan) -> None:
    if plan.content is None:
        part_path(path).unlink(missing_ok=True)
    else:
        write_complete(path, plan.content)


def _fetch_vocabularies(network: Network, server: Server, data: Path) -> list[str]:
    """Fetch the missing vocabularies; return which could not be fetched, and why."""
    failures = []
    for name, (place, num_rows) in VOCABULARIES.items():
        if (data / name).exists():
            continue
        url = f"{server.vocabularies}/{place}"
        try:
            content = network.small(url)
            rows = list(csv.reader(content.decode().splitlines()))
        except (PermanentError, UnicodeDecodeError, csv.Error) as error:
            failures.append(f"{data / name} ({url}: {error})")
            continue
        if rows[:1] and rows[0][:1] == ["Index"] and len(rows) == 1 + num_rows:
            write_complete(data / name, content)
        else:
            found = f"a first column {rows[0][0]!r:.40}" if rows and rows[0] else "no header"
            failures.append(
                f"{data / name} ({url}: expected a column Index and {num_rows:,} rows below it, "
                f"found {found} and {max(0, len(rows) - 1):,} rows)"
            )
    return failures


def _find_missing(
    folder: _Folder, threads: StoppableThreads, check: bool, progress: ProgressFactory, report: Callable[[str], None]
) -> None:
    """Find the missing shards; existing ones that are not in the ledger are hashed."""
    whole = {shard for shard in folder.shards if not check and folder.ledger.contains(shard)}
    doubtful = [shard for shard in folder.shards if shard not in whole and (folder.path / shard.name).exists()]
    total = sum((folder.path / shard.name).stat().st_size for shard in doubtful)
    count = Counter()
    num_hashed = 0

    def md5_of(shard: Shard) -> str:
        return hash_file(folder.path / shard.name, threads, count)[0].hexdigest()

    def tick() -> None:
        advance(count.value, total, f"{num_hashed:,}/{len(doubtful):,} shards")

    with progress(f"check {folder.path}", total, "bytes") as advance:
        for shard, md5 in threads.map(md5_of, doubtful, tick):
            num_hashed += 1
            if md5 == shard.md5:
                folder.ledger.add(shard)
                whole.add(shard)
            else:
                report(
                    f"{folder.path / shard.name}: its MD5 is {md5}, that of the plan {shard.md5}; it is fetched again."
                )
    for shard in whole:
        part_path(folder.path / shard.name).unlink(missing_ok=True)
    folder.missing = [shard for shard in folder.shards if shard not in whole]


def _estimate(folder: _Folder, network: Network, server: Server, threads: StoppableThreads) -> None:
    """Estimate the bytes of the missing shards from the sizes of some, evenly spaced; None where no size is known."""
    num_samples = min(MAX_SAMPLES, len(folder.missing))
    samples = [folder.missing[position * len(folder.missing) // num_samples] for position in range(num_samples)]
    urls = [server.shard_url(folder.partition, shard) for shard in samples]
    answers = threads.map(network.size_of, urls, lambda: None)
    sizes = [size for _, size in answers if size is not None]
    folder.num_bytes = math.ceil(sum(sizes) / len(sizes) * len(folder.missing)) if sizes else None


def _require_space(folders: Sequence[_Folder]) -> None:
    """Require enough free space for the missing shards, or raise Yt8mError; folders may be on several disks."""
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
                f"{path}: about {format_bytes(needed[disk])} are still to be fetched to this disk, and {format_bytes(free)} are "
                "free; free some space, or fetch a part with --shard or --list."
            )


def _fetch_missing(
    folder: _Folder, network: Network, server: Server, threads: StoppableThreads, progress: ProgressFactory
) -> list[str]:
    """Fetch the missing shards; return which could not be fetched, and why.

    Raises:
        Yt8mError: The server is unreachable.
    """
    count = Counter()
    count.add(folder.part_bytes())
    num_all, num_missing = len(folder.shards), len(folder.missing)
    num_tried = num_outages = 0

    def fetch(shard: Shard) -> _Failure | None:
        path = folder.path / shard.name
        try:
            network.fetch(server.shard_url(folder.partition, shard), Part(path, threads, count), shard.md5)
        except PermanentError as error:
            return _Failure(str(error), error.is_outage)
        threads.check()
        publish(path)
        return None

    def tick() -> None:
        total = None if folder.num_bytes is None else max(folder.num_bytes, count.value)
        report(count.value, total, f"{num_all - num_missing + num_tried:,}/{num_all:,} shards")

    failed: dict[Shard, str] = {}
    with progress(f"fetch {folder.path}", None, "bytes") as report:
        for shard, failure in threads.map(fetch, folder.missing, tick):
            num_tried += 1
            if failure is None:
                folder.ledger.add(shard)
                num_outages = 0
                continue
            failed[shard] = f"{folder.path / shard.name} ({failure.reason})"
            num_outages += failure.is_outage
            if num_outages == MAX_OUTAGES:
                raise Yt8mError(
                    f"{failed[shard]}: {num_outages} consecutive shards could not be fetched, and the others were not tried; "
                    "the same command continues when the server is reachable."
                )
    folder.missing = [shard for shard in folder.missing if shard in failed]
    return list(failed.values())


@contextmanager
def _disk_errors_as_sentences(data: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Yt8mError(
                f"{data}: no space left on the disk. Free some space and run the same command again; what was fetched is "
                "kept."
            ) from error
        raise Yt8mError(f"{error.filename or data}: {error.strerror or error}.") from error
