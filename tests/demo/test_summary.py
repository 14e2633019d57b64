"""Sentences about the numbers of a demo, compared as they are printed."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from vavae.demo import summary
from vavae.demo.contents import DemoReport, StepTiming
from vavae.demo.plan import Config


def test_findings(make_report: Callable[..., DemoReport]) -> None:
    report = make_report()
    steps = [StepTiming("train the transformer on aligned latents", 41.2)]
    found = summary.findings(Config(quick=True), report.runs[0], report.reference[0], steps)
    assert found == [
        "The Fréchet distance between real training images, as many as samples, and the test images is 22. A generator "
        "cannot be expected to reach a lower one.",
        "The transformer saw 1,280 latents in 41 s; published models see eighty million and more. The Fréchet distance "
        "uses few samples and the network with which the aligned tokenizer was trained. It compares the runs roughly "
        "and cannot be compared with published FIDs.",
        "To take minutes on a CPU, the tokenizer saw only 512 images, without a discriminator, and its perceptual loss "
        "uses AlexNet, not VGG-16 as published. LPIPS is measured with VGG-16.",
    ]
    later = summary.findings(Config(), report.runs[0], report.reference[0])
    assert "saw 8,192 latents; published" in later[1]


def test_headline(make_report: Callable[..., DemoReport]) -> None:
    report = make_report()
    aligned, unaligned = report.runs
    nan = replace(unaligned, records=[replace(unaligned.records[0], value=float("nan"))])
    assert [found[:3] for found in summary.headline([aligned, nan], report.reference)] == [
        ("PSNR of reconstructions", {"aligned": "25.11", "unaligned": "not measured"}, "dB"),
        ("Linear probe on latents", {"aligned": "0.412", "unaligned": "not measured"}, ""),
        ("Fréchet distance of samples", {"aligned": "99", "unaligned": "not measured"}, "(real: 22)"),
    ]


@pytest.mark.parametrize(("count", "text"), [(1, "CPU, 1 thread"), (3, "CPU, 3 threads")])
def test_threads_of_this_process(count: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert summary.machine(Config(device="cpu"))["device"] == text


def test_note_on_the_teacher() -> None:
    known = summary.teacher_note(Config(), 112)
    assert known.startswith("dinov2-small-focus at 112 px: DINOv2 ViT-S/14 fine-tuned for saliency")
    assert ". License: Apache-2.0" in known
    assert summary.teacher_note(Config(teacher="some/teacher"), (64, 48)) == "some/teacher at 64x48 px"
