"""Hook of mkdocs: what a link reaches in the repository, it reaches in the site.

Files outside docs/ are copied below `repository/`, and a folder gets a page that lists it.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(((?!\w+:)[^)#\s]+)")


def _place(page: str, target: str) -> str | None:
    """Return where the site has the target of a page's link, or None if mkdocs finds it by itself."""
    path = (DOCS / page).parent.joinpath(target).resolve()
    if path.is_dir() and path.is_relative_to(DOCS):
        return f"{path.relative_to(DOCS).as_posix()}/index.md"
    if path.is_file() and path.is_relative_to(ROOT) and not path.is_relative_to(DOCS):
        name = path.relative_to(ROOT).as_posix()
        ending = ".txt" if name.endswith(".md") else ""  # text, since its links are not the site's
        return f"repository/{name}{ending}"
    return None


def _content(place: str) -> str | bytes:
    if place.startswith("repository/"):
        name = place.removeprefix("repository/")
        return (ROOT / (name if (ROOT / name).is_file() else name.removesuffix(".txt"))).read_bytes()
    folder = (DOCS / place).parent
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return f"# {folder.name}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)


def on_files(files: Files, *, config: Any) -> Files:
    """Add copies and lists."""
    for page in list(files.documentation_pages()):
        for link in LINK.finditer(page.content_string):
            place = _place(page.src_uri, link[1])
            if place is not None and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, content=_content(place)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Point the links to them."""

    def replaced(link: re.Match[str]) -> str:
        place = _place(page.file.src_uri, link[1])
        return link[0] if place is None else f"]({'../' * page.file.src_uri.count('/')}{place}"

    return LINK.sub(replaced, markdown)
