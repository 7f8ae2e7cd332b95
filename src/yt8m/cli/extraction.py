"""Commands for features of own videos: weights."""

import os
from pathlib import Path
from typing import Annotated

import typer


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
