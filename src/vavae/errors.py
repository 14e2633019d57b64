"""Errors that are the user's to mend, told in one line."""


class UserError(Exception):
    """Bad input: a wrong key, a missing file, an image that cannot be read.

    The message is one line that names the offending key or file. The command line prints it
    without a stack trace and exits with code 2.
    """


class RunError(Exception):
    """A run failed for a reason other than its input: the loss is not finite, say. Exit code 1, one line."""
