"""What the demo's page says of numbers, without a demo."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from vavae.demo import steps_page as demo_page
from vavae.demo.measure import Measured, ReferenceImages
from vavae.demo.plan import QUICK, Plan
from vavae.metrics import MeasurementProtocol, MetricRecord


def run(name: str, probe: float) -> Measured:
    nothing = np.empty(0)
    records = (MetricRecord("linear probe", probe, MeasurementProtocol(samples=10), higher_is_better=True),)
    return Measured(name, records, nothing, nothing, None, nothing, nothing, nothing, [], [], [])


def plan(teacher: str = "dinov2-small-focus") -> Plan:
    return Plan(Path("unused"), "demo", 32, teacher, QUICK, 0, "cpu")


REFERENCE = cast(
    ReferenceImages,
    SimpleNamespace(
        records=(MetricRecord("floor", 12.0, MeasurementProtocol(samples=10)),),
        teacher=SimpleNamespace(input_size=(112, 112)),
    ),
)


def test_a_difference_that_rounds_to_nothing_has_no_minus() -> None:
    said = demo_page.findings(plan(), REFERENCE, [run("aligned", 0.4121), run("unaligned", 0.4124)], None)
    assert said[0] == "Linear probe on latents: 0.412 aligned, 0.412 unaligned (difference +0.000)."


def test_the_time_of_the_transformer_is_the_measured_one() -> None:
    def last(seconds: float | None) -> str:
        return demo_page.findings(plan(), REFERENCE, [run("aligned", 0.5)], seconds)[-1]

    assert f"saw {QUICK.generator_images:,} latents in 41 s; published models see" in last(41.2)
    assert f"saw {QUICK.generator_images:,} latents; published models see" in last(None)


def test_numbers_beside_others_say_whose_they_are() -> None:
    (both,) = demo_page.headline([run("aligned", 0.4), run("unaligned", 0.3)])
    assert (both.run, both.beside) == ("aligned", {"unaligned": "0.300"})
    (alone,) = demo_page.headline([run("aligned", 0.4)])
    assert alone.run == ""


@pytest.mark.parametrize(("count", "said"), [(1, "1 thread"), (3, "3 threads")])
def test_the_cpu_is_what_the_process_uses_of_it(count: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert demo_page._threads() == said


def test_the_note_on_the_teacher_is_whole_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    for description in ("Made for saliency (not DINOv2)", "Made for saliency (not DINOv2)."):
        state: Any = SimpleNamespace(name="dinov2-small-focus", description=description, licence="MIT")
        monkeypatch.setattr(demo_page.assets, "list_assets", lambda state=state: [state])
        said = demo_page._teacher_note(plan(), REFERENCE)
        assert said == "dinov2-small-focus at 112 px: Made for saliency (not DINOv2). Licence: MIT"
