"""The page in a browser, at the widths of a desk and of a phone."""

import os
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser

from vavae.models import Generator, SamplingConfig
from vavae.serve.server import free_port, launch
from vavae.serve.studio import Studio

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium, which is not installed"),
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio, which is not installed"),
]
TEXT = "document.body.innerText"
IMAGES = "[...document.querySelectorAll('.images img')]"
SIDES = "[...document.querySelectorAll('input[type=number]')].filter(i => i.offsetParent)"


@pytest.fixture(scope="module")
def address(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from vavae.serve.page import build  # here, as gradio takes seconds to load

    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("gradio"))
    quick = Generator(
        generator.transformer,
        generator.tokenizer,
        sampling=SamplingConfig(steps=3),
        class_names=generator.class_names,
    )
    page = build(Studio(quick.tokenizer, quick), Studio(quick.tokenizer, quick, source="other"))
    launch(page, "127.0.0.1", free_port("127.0.0.1"))
    yield page.local_url
    page.close()


@pytest.fixture(params=[1280, 390])
def browser(request: pytest.FixtureRequest, address: str, tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path, request.param) as opened:
        opened.open(address)
        opened.wait(f"{IMAGES}.filter(i => i.complete).length === 32")  # samples of both models are there
        yield opened
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_page(browser: Browser) -> None:
    # All samples are in sight, without scrolling sideways.
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    inside = "(r => r.left >= 0 && r.right <= innerWidth && r.width > 40)(i.getBoundingClientRect())"
    assert browser.js(f"{IMAGES}.filter(i => {inside}).length") == 32
    clipped = "i => i.getBoundingClientRect().bottom > i.closest('.block').getBoundingClientRect().bottom + 1"
    assert browser.js(f"{IMAGES}.filter({clipped}).length") == 0
    below = "i => i.nextElementSibling.getBoundingClientRect().top >= i.getBoundingClientRect().bottom - 1"
    assert browser.js(f"{IMAGES}.filter({below}).length") == 32  # captions cover no picture
    assert not browser.js(f"{TEXT}.includes('CFG-Zero* skips')")  # a setting of another kind of guidance

    # Another seed, which the line below the samples names.
    browser.click("New seed")
    browser.wait(f"{TEXT}.includes('seed ' + {SIDES}[1].value + ' ·')")
    assert browser.js(f"{SIDES}[1].value") != "0"

    # A reconstruction and its numbers; after an error the numbers are gone, and the error is there once.
    browser.js("document.querySelectorAll('[role=tab]')[1].click()")
    browser.click("Reconstruct")
    browser.wait(f"{TEXT}.includes('PSNR')")
    browser.js(f"(i => {{ i.value = 33; i.dispatchEvent(new Event('input', {{bubbles: true}})) }})({SIDES}[0])")
    browser.click("Reconstruct")
    browser.wait(f"{TEXT}.includes('got 33')")
    browser.wait(f"!{TEXT}.includes('PSNR')")
    assert browser.js(f"{TEXT}.split('got 33').length - 1") == 1
    assert browser.js(f"{TEXT}.match(/error/gi).length") == 1  # the title of the message

    # Without its image a reconstruction does not stay.
    browser.js(f"(i => {{ i.value = 32; i.dispatchEvent(new Event('input', {{bubbles: true}})) }})({SIDES}[0])")
    browser.click("Reconstruct")
    browser.wait(f"{TEXT}.includes('PSNR')")
    browser.js("document.querySelector('button[aria-label=\"Remove Image\"]').click()")
    browser.wait(f"!{TEXT}.includes('PSNR')")


def test_stop(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def endless(studio: Any, labels: Any, seed: Any, sampling: Any, tick: Any) -> None:
        for step in range(600):
            tick()
            steps.append(step)
            time.sleep(0.1)

    with Browser(tmp_path, 390) as browser:
        browser.open(address)
        browser.wait(f"{IMAGES}.length === 32")
        monkeypatch.setattr(Studio, "sample", endless)
        browser.click("Sample")
        while not steps:
            time.sleep(0.1)
        assert not browser.js(f"{TEXT}.includes('seed 0 ·')")  # former settings do not stay next to the bar
        browser.click("Stop")
        browser.wait(f"!{IMAGES}.length")  # no result of other settings stays
        assert "error" not in browser.js(TEXT).lower()
        count = -1
        while len(steps) > count:
            count = len(steps)
            time.sleep(1)
        assert count < 500
    shutil.rmtree(tmp_path, ignore_errors=True)
