"""Commands that are not steps of the method: a `Config` and `run` each."""
