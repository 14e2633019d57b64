"""The numbers of docs/evaluation.md are those of the newest result."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "evaluation_pitfalls.py"


def test_page_and_result_agree() -> None:
    spec = importlib.util.spec_from_file_location("evaluation_pitfalls", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.tables(script.latest()) in script.PAGE.read_text()
