"""Parts of the page: its look, and the fields and buttons that several tabs have."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from vavae.checkpoints.registry import GUIDANCE_KINDS
from vavae.data import demo_pixels
from vavae.flow import DETERMINISTIC_SOLVERS, SolverName
from vavae.flow.guidance import GuidanceKind
from vavae.models import SamplingConfig
from vavae.report.images import class_name
from vavae.serve.studio import LARGEST_SIDE, Studio

SMALL = 128
_HEIGHT = 260

# Pixels of small images stay squares. A gallery has as many columns as fit: eight, four of large images, or fewer on
# phones. Captions are below the images, not on them. The message of an error is shown once, above the page, not over
# each field.
CSS = """
.small img { image-rendering: pixelated; }
.picture img { width: 100% !important; height: 100% !important; object-fit: contain; }
.images .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(max(130px, 22%), 1fr)) !important;
  grid-template-rows: none !important; grid-auto-rows: auto !important;
}
.images.small .grid-container { grid-template-columns: repeat(auto-fill, minmax(max(66px, 11%), 1fr)) !important; }
.images .thumbnail-lg { aspect-ratio: auto; height: auto; border: 0; background: none; box-shadow: none; }
.images .thumbnail-lg img { height: auto; }
.images .caption-label {
  position: static; max-width: none; padding: 1px 0; border: 0; background: none;
  font-size: 0.7rem; line-height: 1.3; text-align: center; white-space: normal; overflow-wrap: anywhere;
}
.images .grid-wrap { min-height: 9rem !important; max-height: none !important; overflow: visible !important; }
.images:has(.preview) .grid-wrap { min-height: 28rem !important; }
[data-testid="status-tracker"]:has(.error) { display: none !important; }
footer { display: none !important; }
.dark { --color-accent: var(--primary-400); }
"""


def theme() -> Any:
    """Return a theme with the system's fonts, since web fonts would be downloaded, and a blue for white letters."""
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gr.themes.Default(primary_hue="blue", font=fonts, font_mono=mono).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_border_color="*primary_600",
        color_accent="*primary_600",
    )


def class_choices(studio: Studio) -> list[tuple[str, int]]:
    """Return name and label of each class."""
    generator = studio.generator
    assert generator is not None
    return [(class_name(label, generator.class_names), label) for label in range(generator.num_classes)]


def sampling_controls(
    defaults: SamplingConfig, solvers: Sequence[SolverName], kinds: Sequence[GuidanceKind]
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
        least, most = min(0.05, time_shift), max(2, time_shift)
        shift = gr.Slider(least, most, value=time_shift, step=0.05, label="Time shift (1 is none)")
        start = gr.Slider(0, 1, value=defaults.guidance_start, step=0.01, label="Guidance from time (0 is noise)")
        stop = gr.Slider(0, 1, value=defaults.guidance_stop, step=0.01, label="Guidance up to time (1 is data)")
        own = defaults.guidance_kind if defaults.guidance_kind in kinds else kinds[0]
        kind = gr.Dropdown([(GUIDANCE_KINDS[name], name) for name in kinds], value=own, label="Kind of guidance")
        still = gr.Slider(
            0,
            max(20, defaults.zero_init_steps),
            value=defaults.zero_init_steps,
            step=1,
            label="First steps that CFG-Zero* skips",
            visible=own == "zero_star",
        )
        kind.change(
            lambda name: gr.update(visible=name == "zero_star"), kind, still, api_visibility="private", queue=False
        )
    controls = {
        "guidance_scale": scale,
        "solver": solver,
        "steps": steps,
        "shift": shift,
        "guidance_start": start,
        "guidance_stop": stop,
        "guidance_kind": kind,
        "zero_init_steps": still,
    }

    def settings(*values: Any) -> SamplingConfig:
        return replace(defaults, **dict(zip(controls, values, strict=True)))

    return list(controls.values()), settings


def gallery(label: str, side: int) -> Any:
    """Return a field for images of `side` pixels."""
    return gr.Gallery(
        label=label,
        show_label=False,
        format="png",
        object_fit="contain",
        height="auto",
        elem_classes=["images", "small"] if side <= SMALL else ["images"],
        buttons=["download", "download_all", "fullscreen"],
    )


def picture(label: str, small: bool, **more: Any) -> Any:
    """Return an image field that passes on the path of the file, since gradio cannot open some formats."""
    field = gr.Image(
        label=label,
        format="png",
        type="filepath",
        height=_HEIGHT,
        elem_classes=["picture", "small"] if small else ["picture"],
        buttons=["download", "fullscreen"],
        **more,
    )
    # Set on the object: for a subclass gradio would write a file of types into this package.
    field.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return field


def input_picture(label: str, studio: Studio, number: int) -> Any:
    """Return a field for an own picture, with a first picture of the package."""
    value = Image.fromarray(demo_pixels("test")[number]) if studio.side <= SMALL else None  # it has small ones only
    return picture(label, studio.side <= SMALL, value=value, sources=["upload", "clipboard"])


def side_control(studio: Studio) -> Any:
    """Return the field for the side of cropped images."""
    square = studio.generator is None or isinstance(studio.generator.image_size, int)
    return gr.Number(
        studio.side,
        precision=0,
        label=f"{'Side' if square else 'Longer side'} in pixels: a multiple of {studio.tokenizer.factor}, "
        f"at most {LARGEST_SIDE}",
        step=studio.tokenizer.factor,
    )


class Seeds(NamedTuple):
    """Fields of samples between two seeds."""

    label: Any
    first: Any
    second: Any
    controls: list[Any]
    settings: Callable[..., SamplingConfig]


def seed_controls(studio: Studio) -> Seeds:
    """Return the fields of samples between two seeds."""
    assert studio.generator is not None
    label = gr.Dropdown(class_choices(studio) or [("no classes", 0)], value=0, label="Class")
    first, second = (gr.Number(n, precision=0, label=f"Seed {n + 1}", minimum=0) for n in (0, 1))
    controls = sampling_controls(studio.generator.sampling, DETERMINISTIC_SOLVERS, studio.guidance_kinds)
    return Seeds(label, first, second, *controls)


class Again(NamedTuple):
    """Fields that say how to make a result again."""

    line: Any
    texts: list[Any]  # the command, if there is one, and Python


def again(command: bool) -> Again:
    """Return the fields that say how to make a result again; without `command` only Python does."""
    line = gr.Markdown()
    with gr.Accordion(f"Copy as {'command or ' if command else ''}Python", open=False):
        texts = (
            [gr.Code(label="Command", language="shell", lines=1, interactive=False, wrap_lines=True)] if command else []
        )
        texts.append(gr.Code(label="Python", language="python", lines=1, interactive=False, wrap_lines=True))
    return Again(line, texts)


def run_on(button: Any, act: Callable[..., Any], inputs: list[Any], outputs: list[Any], name: str) -> Any:
    """Let a button compute, and remove former results in time; return the event.

    The first output shows the progress instead of its former value.
    """
    clear(button.click, outputs[1:])  # gradio waits for the events of a click in this order
    event = button.click(act, inputs, outputs, api_name=name, show_progress_on=outputs[0], concurrency_id=name)
    clear(event.failure, outputs)
    for field in inputs:
        if isinstance(field, gr.Image):
            clear(field.change, outputs)
    return event


def clear(when: Any, outputs: list[Any]) -> None:
    """Remove former results at an event: its start, an error or a stop (`failure`)."""
    nothing = ", ".join(["null"] * len(outputs))
    when(None, None, outputs, js=f"() => [{nothing}]" if len(outputs) > 1 else "() => null")
