"""The engine: state, checkpoints, averages, schedules, tracking. It knows no model by name."""
