"""No test of the room loads a pretrained network."""

from frontier_grid import small_dinov2, small_networks  # noqa: F401 fixtures; the second is of all tests
