"""Noise to data and back: paths, times, the training loss, solvers, guidance, sampling."""

from vavae.flow.config import FlowConfig
from vavae.flow.guidance import Guidance, guided_prediction
from vavae.flow.loss import flow_matching_loss, velocity_loss
from vavae.flow.paths import (
    CosinePath,
    LinearPath,
    PathName,
    Prediction,
    ProbabilityPath,
    VariancePreservingPath,
    path_by_name,
)
from vavae.flow.sampling import sample
from vavae.flow.solvers import (
    DETERMINISTIC_SOLVERS,
    SOLVERS,
    Dopri5,
    EulerMaruyama,
    RungeKutta,
    Solver,
    SolverName,
    StepNoise,
    counter_noise,
    euler,
    heun,
    midpoint,
    rk4,
    solver_by_name,
)
from vavae.flow.times import TimeDistribution, shift_times, shifted_times

__all__ = [
    "DETERMINISTIC_SOLVERS",
    "SOLVERS",
    "CosinePath",
    "Dopri5",
    "EulerMaruyama",
    "FlowConfig",
    "Guidance",
    "LinearPath",
    "PathName",
    "Prediction",
    "ProbabilityPath",
    "RungeKutta",
    "Solver",
    "SolverName",
    "StepNoise",
    "TimeDistribution",
    "VariancePreservingPath",
    "counter_noise",
    "euler",
    "flow_matching_loss",
    "guided_prediction",
    "heun",
    "midpoint",
    "path_by_name",
    "rk4",
    "sample",
    "shift_times",
    "shifted_times",
    "solver_by_name",
    "velocity_loss",
]
