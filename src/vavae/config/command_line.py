"""The command line of this process, for reports."""

import re
import shlex
import sys
from pathlib import Path


def command_line(without: str = "") -> str:
    """Return the command line as a user would type it.

    Args:
        without: A switch to leave out, with its value, such as `--page_only`.
    """
    program = re.sub(r"(__main__|cli)\.py$", "vavae", Path(sys.argv[0]).name)
    kept: list[str] = []
    given = iter(sys.argv[1:])
    for argument in given:
        if without and argument.partition("=")[0] == without:
            # `--switch`, `--switch=true` or `--switch true`
            following = next(given, "") if "=" not in argument else ""
            kept += [following] if following.startswith("-") else []
        else:
            kept.append(argument)
    return shlex.join([program, *kept])
