"""Checkpoint files and model folders, of ours and of others -> (configuration, state dict)."""
