"""Faults of the machine, as the system itself tells them."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def limited(what: str, most: int = 0) -> Iterator[None]:
    """Let this process open no file with a number from `most` on (NOFILE), or write no more bytes to one (FSIZE)."""
    kind = getattr(resource, f"RLIMIT_{what}")
    former = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, former)
