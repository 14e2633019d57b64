"""Measure tokenizers and generators: features, protocols, records."""
