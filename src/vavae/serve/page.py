"""The page in gradio: one tab each for samples, reconstructions and interpolations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from vavae.config.image_size import format_size
from vavae.data import demo_pixels, read_rgb
from vavae.data.readable import IMAGE_ERRORS
from vavae.device import device_lock
from vavae.errors import RunError, UserError, memory_ran_out
from vavae.flow import DETERMINISTIC_SOLVERS, SOLVERS, SolverName
from vavae.models import SamplingConfig
from vavae.report.images import class_name
from vavae.serve.guard import checked_inputs
from vavae.serve.studio import LARGEST_SIDE, MOST_IMAGES, Studio

# Pixels of small images stay squares.
CSS = """
.small img { image-rendering: pixelated; }
.picture img { width: 100% !important; height: 100% !important; object-fit: contain; }
footer { display: none !important; }
.dark { --color-accent: var(--primary-400); }
"""
_SMALL = 128
_HEIGHT = 260
_WAITING = 32  # calls in the queue
_ANY = "all classes in turn"
_PROGRESS = gr.Progress()  # gradio finds it among the default values


def theme() -> Any:
    """Return a theme with the system's fonts, since web fonts would be downloaded, and a blue for white letters."""
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gr.themes.Default(primary_hue="blue", font=fonts, font_mono=mono).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_border_color="*primary_600",
        color_accent="*primary_600",
    )


def build(studio: Studio, name: str) -> Any:
    """Return the page, a `gradio.Blocks`.

    Args:
        studio: Computes the images.
        name: The model's name or folder, for the title.
    """
    with gr.Blocks(title=f"vavae: {name}", analytics_enabled=False) as page:
        gr.Markdown(f"# {name}\n{_described(studio)}")
        with gr.Tabs():
            if studio.generator is not None:
                with gr.Tab("Sample"):
                    _sample_tab(studio)
            with gr.Tab("Reconstruct"):
                _reconstruct_tab(studio)
            with gr.Tab("Interpolate"):
                _interpolate_tab(studio)
    _guard(page)
    # Each button runs one computation at a time; calls that do not fit into the queue are refused.
    return page.queue(max_size=_WAITING, api_open=False)


def _guard(page: Any) -> None:
    """Check the values of every call before gradio opens files or converts numbers."""
    preprocess = page.preprocess_data

    async def guarded(block_fn: Any, inputs: list[Any], *others: Any, **more: Any) -> Any:
        try:
            checked = checked_inputs(block_fn.inputs, inputs)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return await preprocess(block_fn, checked, *others, **more)

    page.preprocess_data = guarded


def _described(studio: Studio) -> str:
    tokenizer, generator = studio.tokenizer, studio.generator
    facts = [f"Tokenizer f{tokenizer.factor} d{tokenizer.latent_channels}"]
    if generator is not None:
        network = generator.transformer
        facts.append(f"{type(network).__name__}, {network.config.summary}, {generator.num_classes} classes")
        facts.append(f"{format_size(generator.image_size)} px")
    return " · ".join([*facts, f"on {tokenizer.device.type.upper()}"])


@contextmanager
def _errors_on_page(studio: Studio) -> Iterator[None]:
    """Show errors as sentences on the page. Buttons run in threads; the lock is for devices that allow one only."""
    try:
        with device_lock(studio.tokenizer.device):
            yield
    except (UserError, RunError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    except (RuntimeError, MemoryError) as error:
        if not memory_ran_out(error):
            raise
        raise gr.Error("Out of memory: ask for fewer or smaller images.", print_exception=False) from error


def _opened(path: str | None) -> Image.Image:
    """Open an uploaded picture as the images of a data set."""
    if path is None:
        raise UserError("choose an image first")
    try:
        return read_rgb(path)
    except IMAGE_ERRORS as error:
        raise UserError("this file cannot be read as an image") from error


def _classes(studio: Studio) -> list[tuple[str, int]]:
    """Return name and label of each class."""
    generator = studio.generator
    assert generator is not None
    return [(class_name(label, generator.class_names), label) for label in range(generator.num_classes)]


def _sampling_controls(
    defaults: SamplingConfig, solvers: Sequence[SolverName]
) -> tuple[list[Any], Callable[..., SamplingConfig]]:
    """Return the controls of sampling and a function from their values to settings.

    The ranges contain the model's own defaults.
    """
    chosen, guided = defaults.solver, defaults.guidance_scale
    scale = gr.Slider(min(1, guided), max(10, guided), value=guided, step=0.1, label="Guidance scale (1 is none)")
    with gr.Accordion("Sampling", open=False):
        solver = gr.Dropdown(list(solvers), value=chosen if chosen in solvers else solvers[0], label="Solver")
        steps = gr.Slider(2, max(250, defaults.steps), value=defaults.steps, step=1, label="Grid points")
        time_shift = float(defaults.shift) or 1.0
        shift = gr.Slider(0.05, max(2, time_shift), value=time_shift, step=0.05, label="Time shift (1 is none)")
        start = gr.Slider(0, 1, value=defaults.guidance_start, step=0.01, label="Guidance from time (0 is noise)")
        stop = gr.Slider(0, 1, value=defaults.guidance_stop, step=0.01, label="Guidance up to time (1 is data)")

    def settings(scale: float, solver: SolverName, steps: int, shift: float, start: float, stop: float) -> Any:
        guidance: dict[str, Any] = {"guidance_scale": scale, "guidance_start": start, "guidance_stop": stop}
        return replace(defaults, solver=solver, steps=steps, shift=shift, **guidance)

    return [scale, solver, steps, shift, start, stop], settings


def _gallery(label: str, side: int, columns: int) -> Any:
    classes = "small" if side <= _SMALL else None
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=columns,
        format="png",
        object_fit="contain",
        height="auto",
        elem_classes=classes,
        buttons=["download", "download_all", "fullscreen"],
    )


def _picture(label: str, small: bool, **more: Any) -> Any:
    """Return an image field that passes on the path of the file, since gradio cannot open some formats."""
    picture = gr.Image(
        label=label,
        format="png",
        type="filepath",
        height=_HEIGHT,
        elem_classes=["picture", "small"] if small else ["picture"],
        buttons=["download", "fullscreen"],
        **more,
    )
    # Set on the object: for a subclass gradio would write a file of types into this package.
    picture.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return picture


def _input_picture(label: str, studio: Studio, number: int) -> Any:
    """Return a field for an own picture, with a first picture of the package."""
    value = Image.fromarray(demo_pixels("test")[number]) if studio.side <= _SMALL else None  # it has small ones only
    return _picture(label, studio.side <= _SMALL, value=value, sources=["upload", "clipboard"])


def _sample_tab(studio: Studio) -> None:
    generator = studio.generator
    assert generator is not None
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            chosen = gr.Dropdown([(_ANY, -1), *_classes(studio)], value=-1, label="Class")
            count = gr.Slider(1, MOST_IMAGES, value=16, step=1, label="Images")
            seed = gr.Number(0, precision=0, label="Seed", minimum=0)
            controls, settings = _sampling_controls(generator.sampling, SOLVERS)
            button = gr.Button("Sample", variant="primary")
        with gr.Column(scale=3):
            gallery = _gallery("Samples", studio.side, 8)

    def act(label: int, count: int, seed: int, *values: Any, progress: Any = _PROGRESS) -> list[tuple]:
        """Draw samples 0 to count - 1 of the seed, of one class (-1: the classes in turn)."""
        classes = _classes(studio) or [("", 0)]
        names = {number: name for name, number in classes}
        with _errors_on_page(studio):
            labels = [classes[i % len(classes)][1] if label < 0 else label for i in range(count)]
            sampling = settings(*values)
            last = sampling.steps - 1
            images = studio.sample(labels, seed, sampling, lambda step: progress((step, last), unit="steps"))
        return [(Image.fromarray(image), names[label]) for image, label in zip(images, labels, strict=True)]

    button.click(act, [chosen, count, seed, *controls], gallery, api_name="sample")


def _side_control(studio: Studio) -> Any:
    square = studio.generator is None or isinstance(studio.generator.image_size, int)
    return gr.Number(
        studio.side,
        precision=0,
        label=f"{'Side' if square else 'Longer side'} in pixels: a multiple of {studio.tokenizer.factor}, "
        f"at most {LARGEST_SIDE}",
        step=studio.tokenizer.factor,
    )


def _reconstruct_tab(studio: Studio) -> None:
    small = studio.side <= _SMALL
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            image = _input_picture("Your image", studio, 0)
            side = _side_control(studio)
            button = gr.Button("Reconstruct", variant="primary")
            numbers = gr.Markdown()
        with gr.Column(scale=3):
            with gr.Row():
                original = _picture("Original, cropped", small, interactive=False)
                rebuilt = _picture("Reconstruction", small, interactive=False)
            with gr.Row():
                difference = _picture("Difference, four times", small, interactive=False)
                latent = _picture("Latent, main components as colors", True, interactive=False)

    def act(image: str | None, side: int) -> tuple[Any, ...]:
        """Return the cropped image, its reconstruction, their difference, the latent as colors, and numbers."""
        with _errors_on_page(studio):
            made = studio.reconstruct(_opened(image), side)
        channels, height, width = made.latent_shape
        share = channels * height * width / made.original.size
        numbers = (
            f"PSNR **{made.psnr:.2f} dB**"
            + (f", SSIM **{made.ssim:.3f}**" if made.ssim is not None else "")
            + f"\n\nLatent {channels} × {height} × {width}: {share:.1%} of the image's numbers."
        )
        return *map(Image.fromarray, (made.original, made.image, made.difference, made.latent)), numbers

    button.click(act, [image, side], [original, rebuilt, difference, latent, numbers], api_name="reconstruct")


def _interpolate_tab(studio: Studio) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            count = gr.Slider(2, MOST_IMAGES, value=9, step=1, label="Images")
            with gr.Tabs():
                with gr.Tab("Two images"):
                    first, second = _input_picture("From", studio, 0), _input_picture("To", studio, 1)
                    side = _side_control(studio)
                    of_images = gr.Button("Interpolate", variant="primary")
                if studio.generator is not None:
                    with gr.Tab("Two seeds"):
                        chosen = gr.Dropdown(_classes(studio) or [("no classes", 0)], value=0, label="Class")
                        seeds = [gr.Number(n, precision=0, label=f"Seed {n + 1}", minimum=0) for n in (0, 1)]
                        controls, settings = _sampling_controls(studio.generator.sampling, DETERMINISTIC_SOLVERS)
                        of_seeds = gr.Button("Interpolate", variant="primary")
        with gr.Column(scale=3):
            gallery = _gallery("From one to the other", studio.side, 5)

    def between_images(first: str | None, second: str | None, side: int, count: int) -> list[tuple]:
        """Decode latents on the straight line between the latents of two images."""
        with _errors_on_page(studio):
            return _numbered(studio.between_images(_opened(first), _opened(second), side, count))

    of_images.click(between_images, [first, second, side, count], gallery, api_name="between_images")
    if studio.generator is not None:

        def between_seeds(label: int, first: int, second: int, count: int, *values: Any) -> list[tuple]:
            """Draw samples from noise on the great circle between the noise of two seeds."""
            with _errors_on_page(studio):
                return _numbered(studio.between_seeds(label, first, second, count, settings(*values)))

        of_seeds.click(between_seeds, [chosen, *seeds, count, *controls], gallery, api_name="between_seeds")


def _numbered(images: np.ndarray) -> list[tuple]:
    last = len(images) - 1
    return [(Image.fromarray(image), f"{i / last:.0%}") for i, image in enumerate(images)]
