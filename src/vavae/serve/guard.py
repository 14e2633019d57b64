"""Checks of requests to the page: known hosts, uploaded files, and values in their ranges.

gradio checks less: it opens any path without its `meta` mark, downloads URLs, answers every `Host` (DNS rebinding),
and prints a stack trace for a value of the wrong type.
"""

import ipaddress
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio.route_utils import FnIndexInferError
from gradio.utils import get_upload_folder
from starlette.responses import PlainTextResponse

from vavae.errors import UserError, one_line

_LONGEST = 60  # characters of a value in a message


class KnownHosts:
    """ASGI middleware that answers requests for known hosts only, and bad requests with one line.

    Args:
        app: The application that answers the requests.
        names: Host names and addresses, without ports.
        addresses: Whether every IP address is known; rebinding needs a name.
    """

    def __init__(self, app: Any, names: Collection[str], addresses: bool) -> None:
        self._app = app
        self._names = {name.lower() for name in names}
        self._addresses = addresses

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and not self._knows(dict(scope["headers"]).get(b"host", b"")):
            message = "This page is not served under this name. Add it to vavae serve --allowed_hosts.\n"
            await PlainTextResponse(message, status_code=421)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except (FnIndexInferError, KeyError, ValueError) as error:  # an unknown function or session
            message = f"This page cannot answer {scope['path'][:_LONGEST]} ({one_line(error)[:_LONGEST]}).\n"
            await PlainTextResponse(message, status_code=400)(scope, receive, send)

    def _knows(self, header: bytes) -> bool:
        try:
            host = urlsplit(f"//{header.decode('latin-1')}").hostname or ""
            return host in self._names or (self._addresses and bool(ipaddress.ip_address(host)))
        except ValueError:
            return False


def checked_inputs(blocks: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Return the values of a request for `blocks`; of images, only the path of an uploaded file.

    Raises:
        UserError: A value is missing, out of range or of the wrong type, or a file is not an uploaded one.
    """
    if len(values) != len(blocks):
        raise UserError(f"data must be a list of {len(blocks)} values, got {len(values)}")
    return [_checked(block, value) for block, value in zip(blocks, values, strict=True)]


def _checked(block: Any, value: Any) -> Any:
    if isinstance(block, gr.Image):  # the page reports an empty field
        return None if value is None else {"path": _uploaded(value), "meta": {"_type": "gradio.FileData"}}
    name = block.label.partition(":")[0]
    if isinstance(block, gr.Dropdown):
        known = [choice for _, choice in block.choices]
        chosen = value if block.multiselect and type(value) is list else [value]
        if len(chosen) > len(known) or any(type(one) not in (int, str) or one not in known for one in chosen):
            kind = "a list of" if block.multiselect else "one of"
            raise UserError(f"{name} must be {kind} the {len(known)} choices, got {_shown(value)}")
        return value
    if value is None and isinstance(block, gr.Number):
        raise UserError(f"{name} must be a number; the field is empty")
    whole = block.precision == 0 or block.step == 1
    if type(value) not in (int, float) or value != value or (whole and value % 1):
        raise UserError(f"{name} must be a {'whole ' if whole else ''}number, got {_shown(value)}")
    low = -(2**63) if block.minimum is None else block.minimum
    high = 2**63 - 1 if block.maximum is None else block.maximum
    if not low <= value <= high:
        raise UserError(f"{name} must be from {low} to {high}, got {_shown(value)}")
    return int(value) if whole else value


def _uploaded(value: Any) -> str:
    """Return the real path of a regular file in the page's upload folder; links out of the folder are refused."""
    path = value.get("path") if isinstance(value, dict) else None
    if isinstance(path, str):
        try:
            real = Path(path).resolve(strict=True)
            if real.is_relative_to(Path(get_upload_folder()).resolve()) and real.is_file():
                return str(real)
        except (OSError, ValueError, RuntimeError):  # no such file, a NUL in the path, links in a circle
            pass
    raise UserError("image must be a file that was uploaded to this page")


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value[:_LONGEST] if isinstance(value, str | list) else value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
