"""The flow from noise to data: paths, times, the training loss, solvers, guidance, sampling."""

from vavae.flow.class_token import sample_with_class_token
from vavae.flow.config import FlowConfig
from vavae.flow.guidance import Guidance
from vavae.flow.loss import flow_matching_loss
from vavae.flow.paths import (
    CosinePath,
    LinearPath,
    PathName,
    Prediction,
    ProbabilityPath,
    VariancePreservingPath,
    path_by_name,
)
from vavae.flow.sampling import SampleCallback, sample
from vavae.flow.solvers import DETERMINISTIC_SOLVERS, SOLVERS, SolverName, counter_noise
from vavae.flow.times import TimeDistribution, shift_for_dimension, shifted_times

__all__ = [
    "DETERMINISTIC_SOLVERS",
    "SOLVERS",
    "CosinePath",
    "FlowConfig",
    "Guidance",
    "LinearPath",
    "PathName",
    "Prediction",
    "ProbabilityPath",
    "SampleCallback",
    "SolverName",
    "TimeDistribution",
    "VariancePreservingPath",
    "counter_noise",
    "flow_matching_loss",
    "path_by_name",
    "sample",
    "sample_with_class_token",
    "shift_for_dimension",
    "shifted_times",
]
