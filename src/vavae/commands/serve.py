"""Serve a local web page for a tokenizer or a generator."""

import os
import tempfile
from dataclasses import dataclass
from typing import Any

from vavae.checkpoints import folder as files
from vavae.checkpoints.locations import known_model, resolve
from vavae.device import InferencePrecision, resolve_device
from vavae.errors import UserError
from vavae.extras import require_extra
from vavae.models import Tokenizer
from vavae.models.compilation import compile_while_sampling
from vavae.models.weak_model import open_generator
from vavae.serve.server import free_port, launch
from vavae.serve.studio import Studio
from vavae.training.compile import CompileOption


@dataclass(frozen=True)
class Config:
    """Open a web page on this machine: sample, reconstruct, interpolate.

    Attributes:
        model: A generator's or a tokenizer's folder, its hub id, or a short name of `vavae models`; `demo` comes with
            the package. A tokenizer alone reconstructs and interpolates. Other published transformers are converted
            first (`vavae convert`).
        compare: A second generator with the same latents and classes. The page shows its samples next to those of
            `model`, from the same noise.
        weak_model: Folder, hub id or short name of a weaker generator on the same latents, for autoguidance.
        host: Address to listen on. 127.0.0.1 serves this machine alone; 0.0.0.0 serves others too, without a password.
        allowed_hosts: Further names under which a browser may reach the page, such as that of a proxy. Requests for
            other names are refused.
        port: Port to listen on; null takes the first free one from 7860 on.
        device: auto, cpu, cuda, mps, …
        precision: Compute precision of the transformer.
        compile: Compile the transformer's blocks with torch.compile: `true`, `false`, or `auto` once sampling has taken
            about five minutes on a CPU or one on an NVIDIA GPU. A line says what it brought.
    """

    model: str = "demo"
    compare: str | None = None
    weak_model: str | None = None
    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    port: int | None = None
    device: str = "auto"
    precision: InferencePrecision = "auto"
    compile: CompileOption = "auto"

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise UserError(f"port must be from 1 to 65535, got {self.port}")


def run(config: Config) -> None:
    """Serve until interrupted.

    Raises:
        UserError: gradio is missing, the model cannot be read, or the address or port cannot be used.
    """
    require_extra("serve", "vavae serve")
    port = free_port(config.host, config.port)
    with tempfile.TemporaryDirectory(prefix="vavae-serve-") as kept:
        # Uploads and results are in a folder of this run alone, which is removed in the end.
        os.environ["GRADIO_TEMP_DIR"] = kept
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        # gradio checks that its own page answers, which must not pass through a proxy.
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost,127.0.0.1,::1", config.host]))
        page = build(config)
        launch(page, config.host, port, config.allowed_hosts)
        try:
            print(f"{config.model}: {page.local_url}\nstop with Ctrl-C", flush=True)
            page.block_thread()
        except KeyboardInterrupt:
            return
        finally:
            page.close()


def build(config: Config) -> Any:
    """Return the page of `config.model`, a `gradio.Blocks`."""
    from vavae.serve.page import build as build_page

    models = [config.model] if config.compare is None else [config.model, config.compare]
    return build_page(*(_studio(model, config) for model in models))


def _studio(model: str, config: Config) -> Studio:
    device, known = resolve_device(config.device), known_model(model)
    # The paths of all runs have the same end.
    name = model if known else "/".join(resolve(model).resolve().parts[-3:])
    if known.kind == "generator" if known else files.holds_generator(resolve(model)):
        generator = open_generator(model, config.weak_model, device)
        compile_while_sampling(generator, config.compile)
        return Studio(generator.tokenizer, generator, config.precision, model, name, config.weak_model)
    if config.weak_model is not None:
        raise UserError(f"weak_model must be left out for a tokenizer alone, got {config.weak_model}")
    return Studio(Tokenizer.from_pretrained(model, device), None, config.precision, model, name)
