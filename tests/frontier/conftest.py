"""Networks of measurements are loaded once for all tests of the room in a process."""

from frontier_grid import loaded_once  # noqa: F401 a fixture of all tests
