"""Faults of the machine, raised by the system itself."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def limited(what: str, most: int = 0) -> Iterator[None]:
    """Limit this process to file numbers below `most` (NOFILE), or to files of at most `most` bytes (FSIZE)."""
    kind = getattr(resource, f"RLIMIT_{what}")
    former = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, former)
