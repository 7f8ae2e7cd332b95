"""Fetch the weights: a file gets its name when it was read and checked, and its SHA-256 is recorded."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from yt8m.download.partial import Counter, Part, StoppableThreads, part_path, publish
from yt8m.download.transfer import Network, PermanentError, RetryPolicy
from yt8m.errors import Yt8mError
from yt8m.extraction.weights import (
    DIGESTS_NAME,
    Networks,
    WeightFile,
    check_digest,
    load_networks,
    missing_files,
    present,
    read_digests,
    sha256,
)
from yt8m.files import writing_error
from yt8m.runtime.console import format_bytes
from yt8m.runtime.locks import locked
from yt8m.runtime.progress import ProgressFactory, no_progress


@dataclass(frozen=True)
class FileReport:
    """A weight file that is present.

    Args:
        file: The file.
        num_bytes: Its size.
        digest: Its SHA-256.
        was_fetched: Whether it was fetched now.
    """

    file: WeightFile
    num_bytes: int
    digest: str
    was_fetched: bool


class _WeightPart(Part):
    """The part of a weight file that has arrived. It is complete when it can be read; no server has its digest."""

    def __init__(self, file: WeightFile, folder: Path, threads: StoppableThreads, count: Counter) -> None:
        super().__init__(folder / file.name, threads, count)
        self._file = file
        self._recorded = read_digests(folder)
        self._problem = ""
        count.add(self.size)

    def matches(self, md5: str) -> bool:
        """Whether the part is complete and is this file."""
        if not self.part.exists():
            return False
        try:
            check_digest(self.part, self._file, self._recorded)
            self._file.read(self.part)
        except Yt8mError as error:
            self._problem = str(error).rstrip(".")
            return False
        return True

    def mismatch(self, md5: str) -> str:
        """What is wrong with a complete download."""
        return self._problem or "it is empty"

    def append(self, blocks: Iterable[bytes]) -> None:
        """Append blocks, up to the largest size that is accepted."""
        super().append(self._bounded(blocks))

    def _bounded(self, blocks: Iterable[bytes]) -> Iterable[bytes]:
        for block in blocks:
            if self.size + len(block) > self._file.max_bytes:
                raise PermanentError(f"the server sends more than {format_bytes(self._file.max_bytes)}")
            yield block


def fetch_weights(
    folder: Path,
    *,
    server: str | None = None,
    policy: RetryPolicy | None = None,
    pause: Callable[[float], object] | None = None,
    progress: ProgressFactory = no_progress,
) -> tuple[Networks, Sequence[FileReport]]:
    """Fetch the missing weights into a folder, check all of them, and record their digests.

    Args:
        folder: The folder; files that are there already are used.
        server: URL of another server, with all files side by side.
        policy: Timeouts and retries.
        pause: Waits for a number of seconds between attempts, for tests.
        progress: Reports bytes fetched.

    Returns:
        The networks, and a report on each file that they were made from.

    Raises:
        UsageError: The folder cannot be read.
        Yt8mError: Files could not be fetched, a file is damaged, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder), (folder / DIGESTS_NAME).open("a+b") as digests:
            fetched = _fetch_missing(folder, server, policy or RetryPolicy(), pause, progress)
            networks = load_networks(folder)
            files = [file for alternative in present(folder).values() for file in alternative.files]
            recorded = read_digests(folder)
            reports = [
                FileReport(file, path.stat().st_size, recorded.get(file.name) or sha256(path), file in fetched)
                for file in files
                for path in [folder / file.name]
            ]
            new = [report for report in reports if report.file.name not in recorded]
            digests.write("".join(f"{report.digest}  {report.file.name}\n" for report in new).encode())
    except OSError as error:
        raise writing_error(error, folder, "what was fetched is kept. Free some space and run again") from error
    return networks, reports


def _fetch_missing(
    folder: Path,
    server: str | None,
    policy: RetryPolicy,
    pause: Callable[[float], object] | None,
    progress: ProgressFactory,
) -> Sequence[WeightFile]:
    """Fetch the missing files; return them."""
    missing = missing_files(folder)
    total = sum(file.num_bytes for file in missing)
    arrived = sum(part.stat().st_size for file in missing if (part := part_path(folder / file.name)).exists())
    free = shutil.disk_usage(folder).free
    if total - arrived > free:
        raise Yt8mError(
            f"{folder}: about {format_bytes(total - arrived)} are still to be fetched, and {format_bytes(free)} are free."
        )
    threads = StoppableThreads(len(missing))
    count = Counter()
    failures = []

    def address_of(file: WeightFile) -> str:
        return str(file.url) if server is None else f"{server}/{file.name}"

    def fetch(file: WeightFile) -> str | None:
        network = Network(address_of(file), threads, policy, pause)
        try:
            network.fetch(address_of(file), _WeightPart(file, folder, threads, count), "")
        except PermanentError as error:
            return f"{address_of(file)} ({error})"
        finally:
            network.close()
        threads.check()
        publish(folder / file.name)
        return None

    try:
        with progress(f"fetch {folder}", total, "bytes") as report:
            for _, failure in threads.map(fetch, missing, lambda: report(count.value, max(total, count.value))):
                if failure is not None:
                    failures.append(failure)
    finally:
        threads.stop()
    if failures:
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise Yt8mError(
            f"{folder}: {len(failures)} of {len(missing)} files could not be fetched, {failures[0]}{more}; the same command "
            "continues, or put the files there yourself."
        )
    return missing
