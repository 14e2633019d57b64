"""What the flow knows of a network."""

from typing import Any


def config_of(model: object) -> Any:
    """Return the configuration of a network, of which some arguments may be bound; None for a function."""
    return getattr(getattr(model, "func", model), "config", None)
