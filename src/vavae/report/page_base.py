"""Templates and inline SVGs of the HTML pages."""

import re
from functools import cache
from typing import Any

from vavae.report.numbers import duration, number


def render(room: str, **view: Any) -> str:
    """Return the HTML of the template of `vavae.ROOM`, which extends `base.html.j2`."""
    return _environment(room).get_template(f"{room}.html.j2").render(view)


@cache  # it compiles a template once
def _environment(room: str) -> Any:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(f"vavae.{room}"), PackageLoader("vavae.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration}
    return environment


class Embedder:
    """Inline SVGs into one page, with unique ids and alt text; use one per page."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, svg: str, label: str) -> Any:
        from markupsafe import Markup, escape

        self.count += 1
        prefix = f"f{self.count}-"
        svg = re.sub(r'\bid="', f'id="{prefix}', svg)
        svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
        svg = re.sub(r'href="#', f'href="#{prefix}', svg)
        svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
        return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))
