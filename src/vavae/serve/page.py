"""The page in gradio: one tab each for samples, reconstructions and interpolations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from vavae.config import to_plain
from vavae.config.image_size import format_size
from vavae.data import read_rgb
from vavae.data.readable import IMAGE_ERRORS
from vavae.device import device_lock
from vavae.errors import RunError, UserError, memory_ran_out
from vavae.flow import SOLVERS
from vavae.models import SamplingConfig
from vavae.serve import again, parts
from vavae.serve.guard import checked_inputs
from vavae.serve.studio import MOST_IMAGES, Studio
from vavae.serve.visitor import still_asked

_WAITING = 32  # calls in the queue
_PROGRESS = gr.Progress()  # gradio finds it among the default values


def build(*studios: Studio) -> Any:
    """Return the page, a `gradio.Blocks`.

    Args:
        studios: Compute the images; a second one samples from the same noise, for comparison.

    Raises:
        UserError: The second one has no generator, or one of other latents or classes.
    """
    studio = studios[0]
    _check_comparable(studios)
    name = " and ".join(one.name for one in studios)
    with gr.Blocks(title=f"vavae: {name}", analytics_enabled=False) as page:
        facts = [f"{one.name}: {_described(one)}" if len(studios) > 1 else _described(one) for one in studios]
        gr.Markdown(f"# {name}\n" + "\n\n".join(facts))
        with gr.Tabs():
            if studio.generator is not None:
                with gr.Tab("Sample"):
                    _sample_tab(page, studios)
            with gr.Tab("Reconstruct"):
                _reconstruct_tab(studio)
            with gr.Tab("Interpolate"):
                _interpolate_tab(studio)
    _guard(page)
    # Each button runs one computation at a time; calls that do not fit into the queue are refused.
    return page.queue(max_size=_WAITING, api_open=False)


def _check_comparable(studios: Sequence[Studio]) -> None:
    kinds = [one.generator and (one.generator.latent_shape, one.generator.num_classes) for one in studios]
    for one, kind in zip(studios, kinds, strict=True):
        if kind != kinds[0] or (len(studios) > 1 and kind is None):
            raise UserError(
                f"compare must be a generator with latents and classes like {studios[0].name} ({_kind(kinds[0])}), got "
                f"{one.name} ({_kind(kind)})"
            )


def _kind(kind: Any) -> str:
    return "no generator" if kind is None else f"{'x'.join(map(str, kind[0]))}, {kind[1]} classes"


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
def _errors_on_page(studio: Studio) -> Iterator[Callable[[], None]]:
    """Show errors as sentences on the page; yield the check of `still_asked`.

    Buttons run in threads; the lock is for devices that allow one only.
    """
    check = still_asked()
    try:
        with device_lock(studio.tokenizer.device):
            yield check
    except (UserError, RunError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    except (RuntimeError, MemoryError) as error:
        if not memory_ran_out(error):
            raise
        raise gr.Error("Out of memory: ask for fewer or smaller images.", print_exception=False) from error


def _ticks(check: Callable[[], None], progress: Any, total: int) -> Callable[[], None]:
    """Return a function for the start of each step: it checks, and moves the bar."""
    done = iter(range(1, total + 1))

    def tick() -> None:
        check()
        progress((next(done, total), total), unit="steps")

    return tick


def _opened(path: str | None) -> Image.Image:
    """Open an uploaded picture as the images of a data set."""
    if path is None:
        raise UserError("choose an image first")
    try:
        return read_rgb(path)
    except IMAGE_ERRORS as error:
        raise UserError("this file cannot be read as an image") from error


def _sample_tab(page: Any, studios: Sequence[Studio]) -> None:
    generator = studios[0].generator
    assert generator is not None
    names = {label: name for name, label in parts.class_choices(studios[0])} or {0: ""}
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            classes = gr.Dropdown(
                parts.class_choices(studios[0]),
                value=[],
                multiselect=True,
                label="Classes: none chosen means all in turn",
                visible=generator.num_classes > 0,
            )
            first_count = 16 if studios[0].side <= parts.SMALL else 4
            count = gr.Slider(1, MOST_IMAGES, value=first_count, step=1, label="Images")
            seed = gr.Number(0, precision=0, label="Seed", minimum=0)
            controls, settings = parts.sampling_controls(generator.sampling, SOLVERS, studios[0].guidance_kinds)
            button = gr.Button("Sample", variant="primary")
            with gr.Row():
                random = gr.Button("New seed", min_width=110)
                stop = gr.Button("Stop", min_width=110)
        with gr.Column(scale=3):
            galleries = []
            with gr.Row():
                for one in studios:
                    with gr.Column(min_width=300):
                        if len(studios) > 1:
                            gr.Markdown(f"**{one.name}**")
                        galleries.append(parts.gallery(f"Samples of {one.name}", one.side))
            line, texts = parts.again(command=True)

    def act(chosen: list[int], count: int, seed: int, *values: Any, progress: Any = _PROGRESS) -> list[Any]:
        """Draw samples 0 to count - 1 of the seed, of the chosen classes in turn (none: of all)."""
        chosen = chosen or list(names)
        labels = [chosen[i % len(chosen)] for i in range(count)]
        with _errors_on_page(studios[0]) as check:
            sampling = settings(*values)
            tick = _ticks(check, progress, sampling.solver_steps * len(studios))
            drawn = [_samples(one, labels, names, seed, sampling, tick) for one in studios]
        images, commands, codes = zip(*drawn, strict=True)
        return [
            *images,
            again.described(seed, sampling, studios[0].weak_model_for(sampling)),
            "\n".join(commands),
            "\n\n".join(codes),
        ]

    inputs, outputs = [classes, count, seed, *controls], [*galleries, line, *texts]
    clicked = parts.run_on(button, act, inputs, outputs, "sample")
    parts.clear(random.click, [line, *texts])
    drawn = random.click(None, None, seed, js="() => Math.floor(Math.random() * 2 ** 31)").then(
        act, inputs, outputs, api_visibility="private", show_progress_on=galleries, concurrency_id="sample"
    )
    parts.clear(drawn.failure, outputs)
    first: list[Any] = []

    def opening(progress: Any = _PROGRESS) -> list[Any]:
        """Return the samples with which the page opens; the first visitor computes them."""
        if not first:
            first.extend(act(*[field.value for field in inputs], progress=progress))
        return first

    opened = page.load(
        opening, None, outputs, api_visibility="private", show_progress_on=galleries, concurrency_id="sample"
    )
    parts.clear(opened.failure, outputs)
    stop.click(None, cancels=[clicked, drawn, opened])


def _samples(
    studio: Studio,
    labels: Sequence[int],
    names: dict[int, str],
    seed: int,
    sampling: SamplingConfig,
    tick: Callable[[], None],
) -> tuple[list[tuple[Image.Image, str]], str, str]:
    """Return captioned samples of one model, the command and the code."""
    assert studio.generator is not None
    images = studio.sample(labels, seed, sampling, tick)
    changed = again.changes(sampling, studio.generator.sampling)
    weak_model = studio.weak_model_for(sampling)
    how = (studio.source, labels, seed, changed, studio.precision, weak_model)
    command = again.sample_command(*how)
    facts = {"model": studio.source, "seed": seed, "sampling": to_plain(sampling), "command": command}
    facts |= {} if weak_model is None else {"weak_model": weak_model}
    captioned = [
        (again.with_text(image, **facts, index=i, label=label, name=names[label]), names[label])
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    return captioned, command, again.sample_code(*how)


def _reconstruct_tab(studio: Studio) -> None:
    small = studio.side <= parts.SMALL
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            image = parts.input_picture("Your image", studio, 0)
            side = parts.side_control(studio)
            button = gr.Button("Reconstruct", variant="primary")
            stop = gr.Button("Stop")
            numbers = gr.Markdown()
        with gr.Column(scale=3):
            pair = gr.ImageSlider(
                label="Original, cropped | reconstruction",
                format="png",
                interactive=False,
                elem_classes=["small"] if small else [],
            )
            with gr.Row():
                difference = parts.picture("Difference, four times", small, interactive=False)
                latent = parts.picture("Latent, main components as colors", True, interactive=False)
            line, texts = parts.again(command=False)

    def act(image: str | None, side: int) -> tuple[Any, ...]:
        """Return the cropped image and its reconstruction, their difference, the latent as colors, and numbers."""
        with _errors_on_page(studio) as check:
            made = studio.reconstruct(_opened(image), side, check)
        channels, height, width = made.latent_shape
        share = channels * height * width / made.original.size
        numbers = (
            f"PSNR **{made.psnr:.2f} dB**"
            + (f", SSIM **{made.ssim:.3f}**" if made.ssim is not None else "")
            + f"\n\nLatent {channels} × {height} × {width}: {share:.1%} of the image's numbers."
        )
        facts = {"model": studio.source, "side": side, "psnr": made.psnr}
        original, rebuilt, difference, latent = (
            again.with_text(pixels, **facts, shows=shows)
            for pixels, shows in (
                (made.original, "original"),
                (made.image, "reconstruction"),
                (made.difference, "difference, four times"),
                (made.latent, "latent, main components as colors"),
            )
        )
        code = again.image_code(studio.source, studio.kind, side)
        return (original, rebuilt), difference, latent, numbers, f"cropped to {side} px", code

    outputs = [pair, difference, latent, numbers, line, *texts]
    stop.click(None, cancels=parts.run_on(button, act, [image, side], outputs, "reconstruct"))


def _interpolate_tab(studio: Studio) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            count = gr.Slider(2, MOST_IMAGES, value=8, step=1, label="Images")
            with gr.Tabs():
                with gr.Tab("Two images"):
                    first, second = (parts.input_picture(n, studio, i) for i, n in enumerate(("From", "To")))
                    side = parts.side_control(studio)
                    of_images = gr.Button("Interpolate", variant="primary")
                if studio.generator is not None:
                    with gr.Tab("Two seeds"):
                        seeds = parts.seed_controls(studio)
                        of_seeds = gr.Button("Interpolate", variant="primary")
            stop = gr.Button("Stop")
        with gr.Column(scale=3):
            gallery = parts.gallery("From one to the other", studio.side)
            line, texts = parts.again(command=False)
    outputs = [gallery, line, *texts]

    def between_images(first: str | None, second: str | None, side: int, count: int) -> tuple[Any, ...]:
        """Decode latents on the straight line between the latents of two images."""
        with _errors_on_page(studio) as check:
            images = studio.between_images(_opened(first), _opened(second), side, count, check)
        shown = _numbered(images, model=studio.source, side=side)
        return shown, f"cropped to {side} px", again.image_code(studio.source, studio.kind, side, count)

    events = [parts.run_on(of_images, between_images, [first, second, side, count], outputs, "between_images")]
    if studio.generator is not None:

        def between_seeds(
            label: int, first: int, second: int, count: int, *values: Any, progress: Any = _PROGRESS
        ) -> tuple[Any, ...]:
            """Draw samples from noise on the great circle between the noise of two seeds."""
            with _errors_on_page(studio) as check:
                sampling = seeds.settings(*values)
                tick = _ticks(check, progress, sampling.solver_steps)
                images = studio.between_seeds(label, first, second, count, sampling, tick)
            facts = {"model": studio.source, "label": label, "seeds": [first, second], "sampling": to_plain(sampling)}
            weak_model = studio.weak_model_for(sampling)
            code = again.seeds_code(studio.source, label, (first, second), count, sampling, weak_model)
            return _numbered(images, **facts), again.described(f"{first} to {second}", sampling, weak_model), code

        inputs = [seeds.label, seeds.first, seeds.second, count, *seeds.controls]
        events.append(parts.run_on(of_seeds, between_seeds, inputs, outputs, "between_seeds"))
    stop.click(None, cancels=events)


def _numbered(images: np.ndarray, **facts: Any) -> list[tuple[Image.Image, str]]:
    places = np.linspace(0, 1, len(images)).tolist()
    shown = zip(images, places, strict=True)
    return [(again.with_text(image, **facts, place=place), f"{place:.0%}") for image, place in shown]
