"""One module per command: each composes the rooms and holds the command's `Config` and `run`."""
