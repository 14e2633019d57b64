"""Serve a local web page for a tokenizer or a generator."""

import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vavae.checkpoints import folder as files
from vavae.checkpoints.locations import SHIPPED, resolve
from vavae.device import InferencePrecision, resolve_device
from vavae.errors import UserError
from vavae.models import Generator, Tokenizer

_PORTS = range(7860, 7960)


@dataclass(frozen=True)
class Config:
    """Open a web page on this machine: sample, reconstruct, interpolate.

    Attributes:
        model: A generator's or a tokenizer's folder, or its hub id; `demo` comes with the package. A tokenizer alone
            reconstructs and interpolates. Published checkpoints are converted first (`vavae convert`).
        host: Address to listen on. 127.0.0.1 serves this machine alone; 0.0.0.0 serves others too, without a password.
        allowed_hosts: Further names under which a browser may reach the page, such as that of a proxy. Requests for
            other names are refused.
        port: Port to listen on; null takes the first free one from 7860 on.
        device: auto, cpu, cuda, mps, …
        precision: Compute precision of the transformer.
    """

    model: str = "demo"
    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    port: int | None = None
    device: str = "auto"
    precision: InferencePrecision = "auto"

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise UserError(f"port must be from 1 to 65535, got {self.port}")


def run(config: Config) -> None:
    """Serve until interrupted.

    Raises:
        UserError: gradio is missing, the model cannot be read, or the address or port cannot be used.
    """
    port = free_port(config)
    with tempfile.TemporaryDirectory(prefix="vavae-serve-") as kept:
        # Uploads and results are in a folder of this run alone, which is removed in the end.
        os.environ["GRADIO_TEMP_DIR"] = kept
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        # gradio checks that its own page answers, which must not pass through a proxy.
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost,127.0.0.1,::1", config.host]))
        try:
            import gradio
        except ImportError as error:
            raise UserError("serve needs gradio: pip install 'vavae[gradio]'") from error
        page = build(config)
        launch(page, config, port)
        print(f"{config.model}: {page.local_url}\nstop with Ctrl-C", flush=True)
        try:
            page.block_thread()
        finally:
            gradio.close_all()


def launch(page: Any, config: Config, port: int) -> None:
    """Serve `page` in threads."""
    from starlette.middleware import Middleware

    from vavae.serve.guard import KnownHosts
    from vavae.serve.page import CSS, theme

    page.launch(
        server_name=f"[{config.host}]" if ":" in config.host else config.host,
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
        app_kwargs={"middleware": [Middleware(KnownHosts, *known_hosts(config))]},
    )


def known_hosts(config: Config) -> tuple[set[str], bool]:
    """Return the names under which the page answers, and whether it answers under every IP address."""
    names = {"localhost", "127.0.0.1", "::1", config.host, *config.allowed_hosts}
    everywhere = config.host in ("0.0.0.0", "::")
    return (names | {socket.gethostname(), socket.getfqdn()} if everywhere else names), everywhere


def free_port(config: Config) -> int:
    """Return the port of the options, or the first free one.

    Raises:
        UserError: The host does not exist, or no port is free.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"host: '{config.host}' does not exist ({error.strerror})") from error
    for port in _PORTS if config.port is None else (config.port,):
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((address[0], port))
            except OSError as error:
                reason = error.strerror
            else:
                return port
    asked = config.port or f"{_PORTS.start} to {_PORTS.stop - 1}"
    raise UserError(f"host, port: cannot listen on {config.host}, port {asked} ({reason})")


def build(config: Config) -> Any:
    """Return the page of `config.model`, a `gradio.Blocks`."""
    from vavae.serve.page import build as build_page
    from vavae.serve.studio import Studio

    device = resolve_device(config.device)
    path = resolve(config.model)
    if files.holds_generator(path):
        generator = Generator.from_pretrained(path, device)
        studio = Studio(generator.tokenizer, generator, config.precision)
    else:
        studio = Studio(Tokenizer.from_pretrained(path, device), None, config.precision)
    return build_page(studio, config.model if config.model in SHIPPED else _title(path))


def _title(path: Path) -> str:
    """Return the last three parts of a folder's path; the paths of all runs have the same end."""
    return "/".join(path.resolve().parts[-3:]).strip("/")
