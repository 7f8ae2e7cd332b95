"""Commands for own videos: extract, weights."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from yt8m.cli.options import AcceleratorOption, JsonOption
from yt8m.cli.output import load_catalog, print_json
from yt8m.errors import UsageError, Yt8mError, counted
from yt8m.extraction.videos import VIDEOS_FILE

if TYPE_CHECKING:
    from yt8m.extraction.output import Extracted
    from yt8m.extraction.youtube8m import YouTube8M

WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights", help="Folder of the weights. YT8M_WEIGHTS by default, or else yt8m/weights in the user's cache."
    ),
]


def extract(
    videos: Annotated[
        list[Path] | None,
        typer.Argument(metavar="VIDEO|FOLDER|LIST...", help="Video files, folders of them, or lists (.txt) of paths."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the shards.")] = None,
    max_seconds: Annotated[
        int | None, typer.Option(min=1, help="Seconds to extract of each video; all by default. YouTube-8M has 300.")
    ] = None,
    videos_per_shard: Annotated[int, typer.Option(min=1, max=100_000, help="Videos of a shard.")] = 256,
    decoders: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Processes that decode; by default, one per two cores.")
    ] = None,
    weights: WeightsOption = None,
    accelerator: AcceleratorOption = "auto",
    self_test: Annotated[
        Path | None,
        typer.Option(
            "--self-test",
            metavar="DIR",
            help="Compare the weights with the official test data in DIR, and extract nothing.",
        ),
    ] = None,
    from_features: Annotated[
        bool,
        typer.Option(
            "--from-features",
            help="The inputs are features that other programs extracted: MediaPipe's features.pb, shards of the official "
            "extractor or of floats, or .npz files; see below.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Extract features of video files into shards, as YouTube-8M has them.

    One frame per second goes through Inception-v3 of 2015, and its sound through VGGish; a PCA and 8 bits follow. OUT
    receives shards, a catalog, and videos.csv: the id, path and length of each video, and what was odd about it. OUT can
    be predicted, located and trained on like any folder of shards.

    A file that cannot be decoded is listed with the reason, and the exit status is then 1; the others are extracted. The
    same command resumes an interrupted extraction, and adds videos that are new. `yt8m weights` fetches the networks' weights.

    With --from-features the inputs are files of features, or folders of them: `features.pb` of MediaPipe, shards with
    floats or with ids that a submission cannot hold, and `.npz` files with `rgb` (seconds, 1024) and `audio` (seconds, 128).
    Floats are quantized. Neither weights nor a decoder are needed.

    ```sh
    yt8m extract holiday.mp4 recordings/ --out data/mine
    yt8m extract --from-features mediapipe/ old.tfrecord --out data/converted
    yt8m extract --self-test youtube-8m/feature_extractor/testdata
    ```
    """
    from yt8m.runtime.console import err
    from yt8m.runtime.progress import terminal_progress

    if self_test is None and (not videos or out is None):
        raise UsageError("yt8m extract needs videos and --out DIR, or --self-test DIR.")
    if from_features:
        from yt8m.extraction.converting import convert

        if self_test is not None or max_seconds is not None:
            raise UsageError("--from-features takes features as they are; give neither --self-test nor --max-seconds.")
        out = cast("Path", out)
        _finish(
            convert(videos or [], out, videos_per_shard=videos_per_shard, progress=terminal_progress, report=err.print),
            out,
            as_json,
        )
        return
    extractor = load_extractor(accelerator, weights)
    if self_test is not None:
        _print_self_test(extractor, self_test, as_json)
        return

    from yt8m.extraction.extract import extract as extract_features

    out = cast("Path", out)
    found = extract_features(
        videos or [],
        out,
        extractor,
        max_seconds=max_seconds,
        videos_per_shard=videos_per_shard,
        num_decoders=decoders or max(1, (os.cpu_count() or 1) // 2),
        progress=terminal_progress,
        report=err.print,
    )
    _finish(found, out, as_json)


def _finish(found: Extracted, out: Path, as_json: bool) -> None:
    """Index the shards of an extraction, and print its result; Yt8mError if a file failed."""
    if any(video.is_extracted for video in found.videos):
        load_catalog(out)
    _print_extracted(found, out, as_json)
    if found.failed:
        raise Yt8mError(
            f"{out}: {counted(len(found.failed), 'file')} could not be extracted, as listed above and in {VIDEOS_FILE}."
        )


def load_extractor(accelerator: str, weights: Path | None) -> YouTube8M:
    """The extractor on a device; UsageError if the weights or PyAV are missing."""
    from yt8m.extraction import require_video_extra

    require_video_extra()
    from yt8m.extraction.youtube8m import YouTube8M
    from yt8m.runtime.machine import MachineConfig, make_fabric
    from yt8m.settings import validated

    device = make_fabric(validated(MachineConfig, {"accelerator": accelerator}, "--accelerator")).device
    return YouTube8M.load(device, weights)


def _print_extracted(found: Extracted, out: Path, as_json: bool) -> None:
    from yt8m.runtime.console import format_duration
    from yt8m.runtime.console import out as terminal

    if as_json:
        print_json(
            {"videos": [asdict(video) for video in found.videos], "new": found.num_new, "known": found.num_known}
        )
        return
    seconds = sum(video.seconds for video in {video.video_id: video for video in found.videos}.values())
    terminal.print(
        f"{out}: {counted(found.num_new, 'new video')}, {found.num_known:,} known before, "
        f"{format_duration(seconds)} of video in all"
    )
    terminal.print(f"{out / VIDEOS_FILE}: ids, paths and lengths")


def _print_self_test(extractor: YouTube8M, folder: Path, as_json: bool) -> None:
    from yt8m.extraction.self_test import self_test
    from yt8m.runtime.console import out as terminal

    compared = self_test(extractor.networks, folder)
    if as_json:
        print_json([asdict(comparison) | {"is_within": comparison.is_within} for comparison in compared])
    else:
        for comparison in compared:
            verdict = "within" if comparison.is_within else "above"
            terminal.print(
                f"{comparison.name}: mean relative difference {comparison.difference:.3g}, {verdict} the tolerance of "
                f"{comparison.tolerance:g}"
            )
    if not all(comparison.is_within for comparison in compared):
        raise Yt8mError("The weights do not give the official features; run `yt8m weights` to check them.")


def weights(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of the weights. YT8M_WEIGHTS by default, or else yt8m/weights in the user's cache.",
        ),
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="List the files, their sizes and URLs, and fetch nothing.")
    ] = False,
    server: Annotated[str | None, typer.Option(help="URL of another server, with all files side by side.")] = None,
) -> None:
    """Fetch the weights of the feature extractor, or check those that are present.

    These are Inception-v3 of 2015, VGGish, and a PCA of each: about 390 MB. An interrupted download resumes with the
    same command. Files that are put into the folder by hand are used like those that were fetched.

    Their publishers give no digests. The SHA-256 of each file is recorded in SHA256SUMS when it is first checked, and
    compared whenever the file is used. Every file is read as plain numbers, and nothing in it is executed.

    ```sh
    yt8m weights
    yt8m weights /data/weights --list
    ```
    """
    from yt8m.download.plan import other_server
    from yt8m.download.transfer import RetryPolicy
    from yt8m.extraction.fetching import fetch_weights
    from yt8m.extraction.weights import FETCHED, weights_folder
    from yt8m.runtime.console import format_bytes, out
    from yt8m.runtime.progress import terminal_progress

    folder = weights_folder() if folder is None else folder
    if listed:
        for file in FETCHED:
            state = "present" if (folder / file.name).is_file() else "missing"
            out.print(f"{folder / file.name}: {state}, about {format_bytes(file.num_bytes)}, {file.description}")
            out.print(f"    {file.url}")
        return
    address = None if server is None else other_server(server).shards
    networks, reports = fetch_weights(
        folder, server=address, policy=RetryPolicy(seed=os.getpid()), progress=terminal_progress
    )
    for report in reports:
        state = "fetched" if report.was_fetched else "present"
        out.print(
            f"{folder / report.file.name}: {state}, {format_bytes(report.num_bytes)}, {report.file.description}, SHA-256 "
            f"{report.digest}"
        )
    out.print(f"{folder}: complete, {networks.extractor.name} {networks.extractor.digest[:16]}")
