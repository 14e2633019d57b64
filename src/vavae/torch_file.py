"""Files as `torch.save` writes them, whole or not at all."""

from pathlib import Path
from typing import Any

import torch

from vavae.files import written_whole


def save_whole(content: Any, path: Path) -> None:
    """`torch.save`; the folder is made if missing.

    Raises:
        OSError: The disk is full, say; it names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # To a file, not to a path, of whose faults torch tells no more than that there are some.
        with written_whole(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch covers it with an error of its own
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
