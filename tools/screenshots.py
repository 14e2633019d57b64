"""Take screenshots of whole HTML pages at desktop and phone width with headless Chromium.

    python tools/screenshots.py --output shots run/frontier.html demo/index.html http://127.0.0.1:7860

Each page is shown in a frame as wide as the screenshot, because a headless window is at least 500 px wide.
Files are shown whole; of a URL, whose height cannot be read from outside, the first 2,400 px.
"""

import argparse
import html
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

WIDTHS = (1280, 390)
URL_HEIGHT = 2400
FLAGS = (
    *("--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=20000"),
    *("--disable-web-security", "--disable-site-isolation-trials"),  # lets the outer page read the frame's height
)
OUTER = """<!doctype html><body style="margin: 0">
<iframe style="border: 0; width: {width}px; height: {height}px" src="{url}" onload="setInterval(() =>
document.title = document.querySelector('iframe').contentDocument.documentElement.scrollHeight, 200)"></iframe>"""


def chromium(folder: Path, url: str, width: int, height: int, *action: str) -> str:
    """Show a page in a frame of `width` × `height` px and return what Chromium prints."""
    outer = folder / "outer.html"
    outer.write_text(OUTER.format(width=width, height=height, url=html.escape(url)))
    program = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    size = f"--window-size={max(width, 500)},{height}"
    command = [program, *FLAGS, f"--user-data-dir={folder}/profile", size, *action, outer.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Write NAME-WIDTH.png for each page and print its height."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", help="HTML files or URLs")
    parser.add_argument("--output", type=Path, default=Path("screenshots"))
    arguments = parser.parse_args()
    for page in arguments.pages:
        if "://" not in page and not Path(page).is_file():
            parser.error(f"pages must be HTML files or URLs, got {page}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for page in arguments.pages:
        url = page if "://" in page else Path(page).resolve().as_uri()
        name = "-".join(re.findall(r"\w+", page.removesuffix(".html"))[-3:])
        for width in WIDTHS:
            path = (arguments.output / f"{name}-{width}.png").resolve()
            with tempfile.TemporaryDirectory() as folder:
                found = re.search(r"<title>(\d+)", chromium(Path(folder), url, width, 800, "--dump-dom"))
                height = int(found[1]) if found else URL_HEIGHT
                chromium(Path(folder), url, width, height, f"--screenshot={path}")
                with Image.open(path) as image:
                    image.crop((0, 0, width, height)).save(path)
            print(f"{path}: {height:,} px high")


if __name__ == "__main__":
    main()
