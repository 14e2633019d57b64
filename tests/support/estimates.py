"""Skip the estimate of what a run needs, which takes longer than a tiny run."""

import sys
from collections.abc import Callable


def skip_estimates(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Let the tasks of both stages, if these are imported, not know what a step needs.

    Args:
        replace: Sets an attribute, for example `monkeypatch.setattr`.
    """
    for module, name in (("train_tokenizer", "TokenizerTask"), ("train_dit", "TransformerTask")):
        stage = sys.modules.get(f"vavae.stages.{module}")
        if stage is not None:
            task, unknown = getattr(stage, name), stage.StepWork()
            replace(task, "step_bytes", lambda self, images: None)
            replace(task, "work", lambda self, unknown=unknown: unknown)
