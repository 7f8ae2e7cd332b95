"""Verification of all bytes of shards against their catalog."""

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.layout import ShardInfo, find_shards
from yt8m.dataset.own_files import digest_of, read_files
from yt8m.errors import ShardError
from yt8m.runtime.progress import ProgressFactory, no_progress
from yt8m.shards.contents import ShardFile, ShardWindow
from yt8m.shards.tfrecord import framing_checksum, iterate_records


def changes(catalog: Catalog, progress: ProgressFactory = no_progress) -> list[ShardError]:
    """Read all shards of a catalog, and compare their records with those that were indexed.

    Args:
        catalog: The catalog, with checksums (not of format 1).
        progress: Reports bytes read, after each shard.

    Returns:
        What differs: own labels and ratings, shards that were added or are missing, shards with other records, and records of the catalog that
        are damaged now.

    Raises:
        UsageError: The folder is missing, contains no shards, or listed shards are missing.
    """
    folder = catalog.folder
    known = {shard.name for shard in catalog.shards}
    different = [ShardError(path, "is not in the catalog.") for path in find_shards(folder) if path.name not in known]
    if digest_of(read_files(folder)) != catalog.own_labels:
        different.append(ShardError(folder, "has other labels or ratings than when it was indexed."))
    total, done = sum(shard.num_bytes for shard in catalog.shards), 0
    with progress(f"verify {folder}", total, "bytes") as report:
        for position, shard in enumerate(catalog.shards):
            try:
                different += _changes_of_shard(catalog, position, shard)
            except ShardError as error:
                different.append(error)
            done += shard.num_bytes
            report(done, total)
    return different


def _changes_of_shard(catalog: Catalog, position: int, shard: ShardInfo) -> list[ShardError]:
    if not shard.num_bytes or shard.checksum is None:
        return []
    file = ShardFile(catalog.folder / shard.name)
    used = set(catalog.record_number[catalog.shard_index == position].tolist())
    different: list[ShardError] = []
    framing: list[tuple[int, int]] = []
    end: ShardError | None = None
    try:
        for record in iterate_records(ShardWindow(file), file.path):
            framing.append((record.offset, record.checksum))
            if record.damage is not None and record.number in used:
                different.append(record.damage)
    except ShardError as error:
        end = error
    if file.num_bytes != shard.num_bytes or framing_checksum(framing) != shard.checksum:
        different.append(end or ShardError(file.path, "has other records than those that were indexed."))
    return different
