"""Serve a page: the port, the names under which it answers, and gradio's server."""

import socket
from collections.abc import Collection
from typing import Any

from vavae.errors import UserError

_PORTS = range(7860, 7960)


def free_port(host: str, port: int | None = None) -> int:
    """Return `port`, or the first free one from 7860 on if it is None.

    Raises:
        UserError: The host does not exist, or no port is free.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"host: '{host}' does not exist ({error.strerror})") from error
    for candidate in _PORTS if port is None else (port,):
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((address[0], candidate))
            except OSError as error:
                reason = error.strerror
            else:
                return candidate
    asked = port or f"{_PORTS.start} to {_PORTS.stop - 1}"
    raise UserError(f"host, port: cannot listen on {host}, port {asked} ({reason})")


def known_hosts(host: str, allowed_hosts: Collection[str] = ()) -> tuple[set[str], bool]:
    """Return the names under which a page on `host` answers, and whether it answers under every IP address."""
    names = {"localhost", "127.0.0.1", "::1", host, *allowed_hosts}
    everywhere = host in ("0.0.0.0", "::")
    return (names | {socket.gethostname(), socket.getfqdn()} if everywhere else names), everywhere


def launch(page: Any, host: str, port: int, allowed_hosts: Collection[str] = ()) -> None:
    """Serve `page`, a `gradio.Blocks`, in threads."""
    from starlette.middleware import Middleware

    from vavae.serve.guard import KnownHosts
    from vavae.serve.parts import CSS, theme

    page.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        quiet=True,
        prevent_thread_lock=True,
        share=False,
        theme=theme(),
        css=CSS,
        max_file_size="32mb",
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        app_kwargs={"middleware": [Middleware(KnownHosts, *known_hosts(host, allowed_hosts))]},
    )
