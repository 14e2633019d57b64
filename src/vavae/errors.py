"""Errors that are the user's to mend, told in one line."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Faults of the disk itself; others (no permission, a file in place of a folder) come from what the user chose.
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# Faults that libraries, for example safetensors, report in the system's words as errors of their own.
_IN_WORDS = (*DISK_FAULTS, errno.EROFS, errno.EACCES, errno.EMFILE)


class UserError(Exception):
    """Bad input: a wrong key, a missing file, an image that cannot be read.

    The message is one line that names the offending key or file. The command line prints it
    without a stack trace and exits with code 2.
    """


class RunError(Exception):
    """A run failed for a reason other than its input: the loss is not finite, say. Exit code 1, one line."""


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(text: str) -> str:
    """Return text with escapes (`\\udcff`) for what UTF-8 cannot hold: bytes of file names in another encoding."""
    return text.encode("utf-8", "backslashreplace").decode()


def memory_ran_out(error: BaseException) -> bool:
    """Whether a device or the machine had no more memory; for CPUs and Apple's GPUs torch has no error of its own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    texts = ("DefaultCPUAllocator", "MPS backend out of memory", "Invalid buffer size")
    return any(text in str(error) for text in texts)


def fault_number(error: BaseException) -> int | None:
    """Return the errno behind an error of the system, which libraries may raise as an error of their own, or None."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, UserError | RunError):
        return None
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):  # torch, of a file it writes to
        return error.__context__.errno
    return next((number for number in _IN_WORDS if os.strerror(number) in str(error)), None)


@contextmanager
def as_user_error(failure: Callable[[str], str], memory: str) -> Iterator[None]:
    """Tell in one line of whatever goes wrong in the block: libraries of formats and stores raise what they like.

    Args:
        failure: The message, given the reason.
        memory: What too little memory was there for.

    Raises:
        UserError: Something went wrong; those of the block itself, and its RunErrors, pass as they are.
        RunError: There was not enough memory.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        if memory_ran_out(error):
            raise RunError(f"not enough memory to {memory}") from error
        raise UserError(failure(one_line(error))) from error
