"""Sampling: from noise to latents with a network, a solver, a time grid and guidance."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.flow.guidance import Guidance, guided_prediction
from vavae.flow.labels import integer_labels
from vavae.flow.networks import config_of
from vavae.flow.paths import LinearPath, Prediction, ProbabilityPath
from vavae.flow.solvers import EulerMaruyama, Solver, StepCallback, StepNoise, solver_by_name
from vavae.flow.times import shifted_times, stochastic_times

SampleCallback = Callable[[int, float, Tensor, Tensor], None]
Network = Callable[..., Any]


def sample(
    model: Network,
    noise: Tensor,
    labels: Tensor,
    *,
    solver: str | Solver = "euler",
    steps: int = 250,
    shift: float = 0.3,
    end: float = 1.0,
    guidance: Guidance | None = None,
    weak_model: Network | None = None,
    path: ProbabilityPath | None = None,
    prediction: Prediction = "velocity",
    step_noise: StepNoise | None = None,
    callback: SampleCallback | None = None,
    null_label: int | None = None,
) -> Tensor:
    """Integrate the flow from noise to data, without gradients and with all networks in eval mode.

    With a fixed-step solver, a sample depends only on its own noise and label.

    Args:
        model: (x, t, labels) -> prediction, with t (B,) float32; for example `LightningDiT`.
        noise: (B, C, h, w) standard normal noise; the state has its dtype.
        labels: (B,) integers.
        solver: A name ("euler", "heun", "midpoint", "rk4", "dopri5", "euler_maruyama") or a solver.
        steps: Grid points, as published: 250 points are 249 evaluations with Euler, and 250 with "euler_maruyama"
            (`stochastic_times`). dopri5 chooses its own steps.
        shift: Shift of the grid (`shifted_times`): below 1 puts more points near noise, 0 spaces them evenly
            (`timestep_shift` in the published code).
        end: Last time before the shift; RAE stops at 0.999.
        guidance: Scale, interval and channels; None for no guidance.
        weak_model: Weaker network, which makes the guidance autoguidance.
        path: Path that the network was trained on; straight lines if None.
        prediction: What the network predicts.
        step_noise: Noise of "euler_maruyama"; `counter_noise` makes it a function of seed and image, None draws it
            from torch's default generator.
        callback: Called at the start of each step as callback(step, t, x, data), where data is the network's current
            estimate of the result; for previews.
        null_label: Label that means "no label"; None takes model.config.num_classes.

    Returns:
        (B, C, h, w) data, normalized like the network's training data.

    Raises:
        UserError: Labels do not fit, noise is not floating-point, the solver or prediction does not exist, there are
            too few steps, or guidance has neither a null label nor a weak model.
    """
    # Defaults and checks
    path = LinearPath() if path is None else path
    guidance = Guidance() if guidance is None else guidance
    if not noise.is_floating_point():
        raise UserError(f"noise must be floats, got {noise.dtype}")
    num_classes = getattr(config_of(model), "num_classes", None)
    labels = integer_labels(labels, len(noise), noise.device)
    if num_classes is not None:
        null_label = num_classes if null_label is None else null_label
        _check_range("labels", labels.tolist(), num_classes)
        _check_range("null_label", [null_label], num_classes)

    # Solver and time grid
    solve = solver_by_name(solver, path=path, step_noise=step_noise) if isinstance(solver, str) else solver
    first, last = path.interval(prediction)
    grid = stochastic_times if isinstance(solve, EulerMaruyama) else shifted_times
    times = first + (last - first) * grid(steps, shift, end)
    still = guidance.still_steps
    guidance.check_steps(len(times) - 1, steps)

    # The network's predictions as a guided velocity, and the velocity as an estimate of the data
    def convert(value: Tensor, x: Tensor, t: float, source: Prediction, target: Prediction) -> Tensor:
        time = torch.tensor(t, dtype=torch.float32, device=x.device)  # the network's input is float32 too
        wide = time.to(torch.promote_types(x.dtype, torch.float32))
        return path.convert(value, x, wide, source, target).to(x.dtype)

    def to_velocity(value: Tensor, x: Tensor, t: float) -> Tensor:
        return value if prediction == "velocity" else convert(value, x, t, prediction, "velocity")

    velocity = guided_prediction(
        model, labels, guidance, null_label=null_label, weak_model=weak_model, velocity=to_velocity
    )

    on_step: StepCallback | None = None
    if callback is not None:

        def on_step(step: int, t: float, x: Tensor, v: Tensor) -> None:
            callback(step + still, t, x, convert(v, x, t, "velocity", "data"))

    # Integration
    with _evaluating(model, weak_model), torch.inference_mode():
        data = solve(velocity, noise, times[still:], callback=on_step)
    # Autograd cannot use a tensor made under inference mode, but it can use a copy.
    return data.clone()


@contextmanager
def _evaluating(*models: Network | None) -> Iterator[None]:
    """Set all modules to eval mode in the block, and restore the mode of each one; some may be in eval mode already."""
    training = [
        module for model in models if isinstance(model, nn.Module) for module in model.modules() if module.training
    ]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _check_range(name: str, labels: list[int], highest: int) -> None:
    wrong = sorted({label for label in labels if not 0 <= label <= highest})
    if wrong:
        raise UserError(f"{name} must be in [0, {highest}], got {wrong[:10]}")
