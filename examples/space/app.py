"""The page of `vavae serve` as a Space of the hub: https://huggingface.co/docs/hub/spaces."""

import os

from vavae.commands.serve import Config, run

run(
    Config(
        model=os.environ.get("VAVAE_MODEL", "demo"),
        compare=os.environ.get("VAVAE_COMPARE"),
        host="0.0.0.0",
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        allowed_hosts=tuple(filter(None, [os.environ.get("SPACE_HOST")])),  # the name under which the hub shows it
    )
)
