"""Read what `torch.save` wrote: tensors and plain values only, and no more memory than the file has bytes."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yt8m.errors import Yt8mError


class TorchFileError(Exception):
    """Why a file was not read, as a clause that calls the file `it`."""


def read_torch_file(path: Path, device: torch.device | str = "cpu") -> Any:
    """Load tensors and plain values from a file of `torch.save`, without unpickling anything else.

    Args:
        path: The file; archives, and the older format without one.
        device: Device of the tensors.

    Raises:
        TorchFileError: The file cannot be opened, is damaged, is no file of `torch.save`, or contains other objects.
    """
    try:
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\x03\x04"
        if is_archive:
            _check_sizes(path)
        return torch.load(path, map_location=device, weights_only=True)
    except TorchFileError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message recommends to allow the execution of code.
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise TorchFileError(
            f"unpickling it requires {blocked[1]}, but only tensors are allowed; none of it was executed"
            if blocked
            else "it is not a pickle of tensors, as torch.save writes it; none of it was executed"
        ) from None
    # The type depends on where the file is damaged: EOFError, KeyError, RuntimeError, struct.error...
    except Exception as error:
        problem = "" if "weights_only" in str(error) else " ".join(str(error).split())[:80].rstrip(". ")
        raise TorchFileError(
            f"it is damaged, or was not written by torch.save ({problem or type(error).__name__})"
        ) from None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a pickle, without unpickling anything else.

    Raises:
        Yt8mError: The file is damaged, or contains anything but tensors by name.
    """
    try:
        found = read_torch_file(path)
    except TorchFileError as error:
        raise Yt8mError(f"{path}: {str(error).removeprefix('it ')}.") from None
    if not isinstance(found, dict):
        raise Yt8mError(f"{path}: contains a {type(found).__name__}, expected a state dict: tensors by name.")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise Yt8mError(
                f"{path}: contains a {type(tensor).__name__} under {str(name)[:60]!r}, expected a state dict: tensors by "
                "name."
            )
        # A view can repeat one number a billion times: all values that are copied later must be in the file.
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise Yt8mError(f"{path}: {name} is not stored as a contiguous CPU tensor, as in a state dict.")
    return {name: tensor.detach() for name, tensor in found.items()}


def _check_sizes(path: Path) -> None:
    """Refuse an archive that unpacks to more than its size; torch.save does not compress.

    Raises:
        TorchFileError: It is compressed, or its records overlap.
        zipfile.BadZipFile: It is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise TorchFileError("it is a compressed archive, which torch.save does not write; it was not read")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise TorchFileError("it is an archive whose records are larger than the file; it was not read")
