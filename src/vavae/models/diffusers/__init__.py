"""Export of a generator as a pipeline of diffusers."""
