"""Find banned words in code, docs and recipes: python tools/words.py [FILE ...]

CONTRIBUTING.md has the rule: plain English, subject, verb, object. These words mark sentences that need rewriting.
Prints FILE:LINE: WORD for each and exits with 1 if there are any.
"""

import re
import subprocess
import sys
from pathlib import Path

BANNED = re.compile(
    r"\b(told|nobody|somebody|anew|theirs|got at|goes on|(?:is|are|was|holds?) no (?=[a-z])|beside|lies"
    r"|mend(?:s|ed)?|normalis\w+|licen[c]e\w*|colour\w*|behaviour\w*)\b|, say[,.;)]",
    re.IGNORECASE,
)
CHECKED = ["README.md", "CONTRIBUTING.md", "docs", "examples", "src", "tests", "benchmarks", "tools"]
# The generators of these pages are checked; this file names the words.
SKIPPED = [":!docs/frontier", ":!docs/benchmarks.md", ":!tools/words.py"]
SUFFIXES = {".py", ".md", ".yaml", ".j2", ".toml", ".sh", ".css"}


def main(names: list[str]) -> int:
    """Check the given files, or all that git tracks."""
    command = ["git", "ls-files", "--", *(names or CHECKED), *SKIPPED]
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = 0
    for name in files:
        if Path(name).suffix not in SUFFIXES:
            continue
        for number, line in enumerate(Path(name).read_text(encoding="utf-8").splitlines(), 1):
            for match in BANNED.finditer(line):
                found += 1
                print(f"{name}:{number}: {match[0].strip()}")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
