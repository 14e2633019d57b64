"""From noise to latents: a network, a solver, a grid of times and guidance, put together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.flow.guidance import Guidance, guided_prediction
from vavae.flow.paths import LinearPath, Prediction, ProbabilityPath
from vavae.flow.solvers import Solver, StepCallback, StepNoise, solver_by_name
from vavae.flow.times import shifted_times

SampleCallback = Callable[[int, float, Tensor, Tensor], None]
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def sample(
    model: Network,
    noise: Tensor,
    labels: Tensor,
    *,
    solver: str | Solver = "euler",
    steps: int = 250,
    shift: float = 0.3,
    guidance: Guidance | None = None,
    weak_model: Network | None = None,
    path: ProbabilityPath | None = None,
    prediction: Prediction = "velocity",
    step_noise: StepNoise | None = None,
    callback: SampleCallback | None = None,
    null_label: int | None = None,
) -> Tensor:
    """Carry noise to data.

    Runs without gradients and with all of the network in eval mode. With fixed steps, a sample depends on its own
    noise and label only.

    Args:
        model: (x, t, labels) -> prediction, with t (B,) float32; such as `LightningDiT`.
        noise: (B, C, h, w) standard normal noise; its dtype is that of the state.
        labels: (B,) integers.
        solver: A name ("euler", "heun", "midpoint", "rk4", "dopri5", "euler_maruyama") or a solver.
        steps: Grid points, as published: 250 points are 249 evaluations with Euler. Of no effect on dopri5.
        shift: How the grid is bent (`shifted_times`); below 1 puts more points near noise, 0 bends nothing.
        guidance: How to guide; None does not.
        weak_model: A weaker network, which makes the guidance autoguidance.
        path: The path the network was trained on; straight lines if None.
        prediction: What the network predicts.
        step_noise: Where "euler_maruyama" takes its noise from; `counter_noise` makes it a function of seed
            and image, None draws it from torch's default generator.
        callback: Called at the start of each step as callback(step, t, x, data), data being what the network
            now expects the result to be; for previews.
        null_label: The label that means "no label"; None takes model.config.num_classes.

    Returns:
        (B, C, h, w) data, in the normalisation of the data the network was trained on.

    Raises:
        UserError: Labels that are not one per sample, not integers, or out of range; an unknown solver; too
            few steps; guidance without a null label or weak model.
    """
    path = LinearPath() if path is None else path
    guidance = Guidance() if guidance is None else guidance
    num_classes = getattr(getattr(model, "config", None), "num_classes", None)
    null_label = num_classes if null_label is None else null_label
    labels = labels.to(noise.device)
    _check_labels(labels, len(noise), num_classes)
    solve = solver_by_name(solver, path=path, step_noise=step_noise) if isinstance(solver, str) else solver
    start, end = path.interval(prediction)
    times = start + (end - start) * shifted_times(steps, shift)
    predict = guided_prediction(model, labels, guidance, null_label=null_label, weak_model=weak_model)

    def velocity(x: Tensor, t: float) -> Tensor:
        value = predict(x, t)
        return value if prediction == "velocity" else convert(value, x, t, prediction, "velocity")

    def convert(value: Tensor, x: Tensor, t: float, source: Prediction, target: Prediction) -> Tensor:
        time = torch.tensor(t, dtype=torch.float32, device=x.device)  # what the network is told
        wide = time.to(torch.promote_types(x.dtype, torch.float32))
        return path.convert(value, x, wide, source, target).to(x.dtype)

    on_step: StepCallback | None = None
    if callback is not None:

        def on_step(step: int, t: float, x: Tensor, v: Tensor) -> None:
            callback(step, t, x, convert(v, x, t, "velocity", "data"))

    with _evaluating(model, weak_model), torch.inference_mode():
        data = solve(velocity, noise, times, callback=on_step)
    # A tensor made under inference mode cannot enter autograd; its copy can.
    return data.clone()


@contextmanager
def _evaluating(*models: Network | None) -> Iterator[None]:
    """Eval mode inside, the former mode of each of their modules after: some may be frozen in eval mode."""
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


def _check_labels(labels: Tensor, count: int, highest: int | None) -> None:
    if labels.shape != (count,):
        raise UserError(f"labels: expected {count}, one per sample, got shape {tuple(labels.shape)}")
    if labels.is_floating_point():
        raise UserError(f"labels: expected integers, got {labels.dtype}")
    if highest is not None and count and not 0 <= int(labels.min()) <= int(labels.max()) <= highest:
        raise UserError(f"labels: must lie in [0, {highest}], got {sorted(set(labels.tolist()))}")
