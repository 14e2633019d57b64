"""Errors in one line: bad input, a failed run, faults of the machine."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

# Faults of the disk. Other errors (no permission, a file in place of a folder) come from the path that the user chose.
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# Faults that libraries such as safetensors report in the system's words, as their own errors.
_IN_WORDS = (*DISK_FAULTS, errno.EROFS, errno.EACCES, errno.EMFILE)


class UserError(Exception):
    """Bad input: a wrong key, a missing file, an image that cannot be read.

    The message is one line that names the key or file. The command line prints it and exits with code 2.
    """


class RunError(Exception):
    """A run failed for a reason other than its input, for example a loss that is not finite. Exit code 1, one line."""


@contextmanager
def errors_name(source: object) -> Iterator[None]:
    """Put the name of a file before the message of a UserError of the block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "; did you mean 'NEAREST'?", or nothing if no known name is similar."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"; did you mean '{near[0]}'?" if near else ""


def one_line(error: BaseException) -> str:
    """Return an error's message without line breaks, or its class if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(text: str) -> str:
    """Return text with escapes (`\\udcff`) for what UTF-8 cannot hold: bytes of file names in another encoding."""
    return text.encode("utf-8", "backslashreplace").decode()


def memory_ran_out(error: BaseException) -> bool:
    """Return whether a device or the machine ran out of memory; torch has no error class for CPUs and Apple's GPUs."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    texts = ("DefaultCPUAllocator", "MPS backend out of memory", "Invalid buffer size")
    return any(text in str(error) for text in texts)


def fault_number(error: BaseException) -> int | None:
    """Return the errno of a system error, which libraries may raise as their own error, or None."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, UserError | RunError):
        return None
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):  # torch, writing a file
        return error.__context__.errno
    return next((number for number in _IN_WORDS if os.strerror(number) in str(error)), None)


@contextmanager
def as_user_error(failure: Callable[[str], str], memory: str) -> Iterator[None]:
    """Turn any exception of the block into an error of one line: libraries raise errors of many classes.

    It becomes a UserError with the message `failure(reason)`; if memory ran out, a RunError that names `memory`, the
    work that needed it. A UserError or RunError of the block passes unchanged.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        if memory_ran_out(error):
            raise RunError(f"not enough memory to {memory}") from error
        raise UserError(failure(one_line(error))) from error
