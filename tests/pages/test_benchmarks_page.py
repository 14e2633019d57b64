"""docs/benchmarks.md shows the newest results."""

import json
from pathlib import Path
from typing import Any

import page

ROOT = Path(__file__).parents[2]


def test_page_shows_the_results() -> None:
    assert (ROOT / "docs/benchmarks.md").read_text() == page.page(), "run: python benchmarks/page.py"


def write(folder: Path, name: str, results: list[dict[str, Any]], **more: Any) -> None:
    record = {"date": name[:10], "command": f"python {name}", "results": results, **more}
    (folder / f"{name}.json").write_text(json.dumps(record))


def test_newest_result_of_each_kind(tmp_path: Path) -> None:
    ratio = {"name": "tokenizer step", "ratios": [0.5, 0.7, 0.6], "target": 0.65}
    write(tmp_path, "2026-01-02-paired-cpu-small-fp32", [{**ratio, "ratio": 0.9}])
    load = {"before": [0.1, 0, 0], "after": [1.25, 0, 0]}
    write(tmp_path, "2026-01-03-paired-cpu-small-fp32", [{**ratio, "ratio": 0.6}], threads=2, load_average=load)
    write(tmp_path, "2026-01-01-paired-cuda-published-bf16", [{**ratio, "ratio": 0.66}], versions={"gpu": "H200"})
    kills = [{"signal": "SIGKILL", "images": 8}, {"signal": "SIGTERM", "images": 9}, {"signal": "SIGKILL", "images": 9}]
    entry = {"stage": "tokenizer", "images": 4096, "kills": kills, "differing": ["model/x"]}
    write(tmp_path, "2026-01-01-kill-test", [entry])
    write(tmp_path, "2026-01-01-gpu-memory", [{"size": "XL/1", "gb": 12.3456, "spread": [1, 2]}])
    sizes = [{"size": 62_500 * n, "seconds": 1.25 * n, "memory_mb": 10 * n} for n in (1, 4, 16)]
    write(tmp_path, "2026-01-01-growth", [{"stage": "listing", "work": 16.0, "exponent": 1.0, "sizes": sizes}])
    text = page.page(tmp_path)
    assert "| tokenizer step | 0.600 | 0.500 to 0.700 | 3 | 0.65, reached |" in text
    assert "2026-01-03, 2 threads, load average 0.1 before, 1.2 after." in text
    assert "0.900" not in text and "2026-01-02" not in text  # an older run of the same kind
    assert "| tokenizer step | 0.660 |" in text and "0.65, missed |" in text and "2026-01-01, H200." in text
    assert "| tokenizer | 4,096 | 3 (2 SIGKILL, 1 SIGTERM) | model/x |" in text
    assert "| XL/1 | 12.35 |" in text and "spread" not in text
    assert "| listing | 62500 / 250000 / 1000000 | 16 | 1.25 / 5 / 20 | 10 / 40 / 160 | 1.00 |" in text
