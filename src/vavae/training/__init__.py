"""The trainer: state, checkpoints, averages, schedules, logs. It does not depend on any model."""
