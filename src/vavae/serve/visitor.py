"""Computations end when their visitor presses Stop or leaves the page."""

from collections.abc import Callable

import gradio as gr
from gradio.context import LocalContext


def still_asked() -> Callable[[], None]:
    """Return a function that ends the running call, by a `gradio.Error`, once nothing waits for its result.

    gradio then drops the call, but lets a function that runs in a thread finish.
    """
    page, call = LocalContext.blocks.get(), LocalContext.event_id.get()
    assert page is not None and call is not None
    calls = page._queue.event_ids_to_events

    def check() -> None:
        event = calls.get(call)
        if event is None or not event.alive:  # stopped; or the connection that waits for the result is closed
            raise gr.Error("stopped", print_exception=False)

    return check
