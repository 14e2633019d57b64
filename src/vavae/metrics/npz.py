"""Read statistics from npz files of other programs: bounded in size, and without running code in them."""

import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vavae.errors import UserError, one_line

# Compression shrinks real numbers and images to a half or a tenth; only files made to fill memory shrink more.
_MOST_SHRUNK = 200
_SMALL = 2**20  # bytes, always accepted
_MOST_STATISTICS = 2 * 2**30  # bytes of a covariance of 16,384 features
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s", "count", "network", "network_hash")


def check_unpacked(member: zipfile.ZipInfo) -> None:
    """Check that a member of a zip file does not unpack to far more than its compressed size.

    Raises:
        ValueError: It does; the message names the remedy for a real array.
    """
    if member.file_size > max(_SMALL, _MOST_SHRUNK * member.compress_size):
        raise ValueError(
            f"{member.filename} unpacks {member.compress_size:,} bytes to {member.file_size:,}; if that is meant, "
            "write the file with numpy.savez, uncompressed"
        )


def read_npz(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz file whose names are in `STATISTICS`, by name.

    Raises:
        UserError: It cannot be read, or its arrays are too large; the message names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        names = [name for name in STATISTICS if name in members]
        for name in names:
            check_unpacked(members[name])
            if members[name].file_size > _MOST_STATISTICS:
                raise ValueError(f"{name} has {members[name].file_size:,} bytes, at most {_MOST_STATISTICS:,} are read")
        with np.load(Path(path), allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except Exception as error:  # a damaged archive fails in a dozen ways: checksums, compression, headers, sizes
        message = f"{path} is not a file of reference statistics (npz with mu and sigma): {one_line(error)}"
        raise UserError(message) from error


def stored_count(arrays: Mapping[str, NDArray[Any]], name: str) -> int | None:
    """Return the number of samples that the arrays of the file `name` record, or None.

    Raises:
        UserError: `count` is not a number of samples.
    """
    if "count" not in arrays:
        return None
    count = arrays["count"]
    if count.size != 1 or count.dtype.kind not in "fiu" or not 2 <= count.item() < math.inf:
        raise UserError(f"{name}: count is not one number of images, at least 2")
    return int(count.item())
