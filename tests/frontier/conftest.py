"""No test of the room loads a pretrained network."""

from frontier_grid import small_networks  # noqa: F401 a fixture of all tests
