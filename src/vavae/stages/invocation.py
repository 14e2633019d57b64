"""The command line of this process, for reports."""

import re
import shlex
import sys
from pathlib import Path


def command_line() -> str:
    """The command line as a user would type it again."""
    program = re.sub(r"(__main__|cli)\.py$", "vavae", Path(sys.argv[0]).name)
    return shlex.join([program, *sys.argv[1:]])
