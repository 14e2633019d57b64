"""A local web page for a tokenizer or a generator."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vavae.errors import UserError
from vavae.pretrained import Generator, Tokenizer
from vavae.pretrained import folder as files
from vavae.training.precision import Precision, resolve_device


@dataclass(frozen=True)
class Config:
    """Open a web page on this machine: sample, reconstruct, interpolate.

    Attributes:
        model: A generator's or a tokenizer's folder, or its hub id; `demo` comes with the package. A tokenizer alone
            reconstructs and interpolates.
        host: Address to listen on; 127.0.0.1 is this machine alone, 0.0.0.0 lets others in, who need no password.
        port: Port to listen on; null takes the first free one from 7860 on.
        device: auto, cpu, cuda, …
        precision: Compute precision of the transformer.
    """

    model: str = "demo"
    host: str = "127.0.0.1"
    port: int | None = None
    device: str = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise UserError(f"port: {self.port} is not in 1..65535")


def run(config: Config) -> None:
    """Serve until interrupted.

    Raises:
        UserError: gradio is missing, the model cannot be read, or the port is taken.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError("serve needs gradio: pip install 'vavae[gradio]'") from error
    page = build(config)
    from vavae.serve.page import CSS, theme

    try:
        page.launch(
            server_name=config.host, server_port=config.port, quiet=True, prevent_thread_lock=True, share=False,
            theme=theme(), css=CSS, max_file_size="32mb", ssr_mode=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"host, port: cannot listen on {config.host}:{config.port or '7860 and up'}; taken?") from error
    print(f"{config.model}: {page.local_url}\nstop with Ctrl-C", flush=True)
    try:
        page.block_thread()
    finally:
        gradio.close_all()


def build(config: Config) -> Any:
    """The page of `config.model`, a `gradio.Blocks` not yet served."""
    from vavae.serve.page import build as build_page
    from vavae.serve.studio import Studio

    device = resolve_device(config.device)
    path = files.resolve(config.model)
    if _is_generator(path):
        generator = Generator.from_pretrained(path, device)
        studio = Studio(generator.tokenizer, generator, config.precision)
    else:
        studio = Studio(Tokenizer.from_pretrained(path, device), None, config.precision)
    return build_page(studio, Path(config.model).name)


def _is_generator(path: Path) -> bool:
    form = files.form_of(path)
    return form == "generator" or (form == "pipeline" and "sampling" in files.read_pipeline(path))
