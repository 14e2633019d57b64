"""The web page of `vavae serve`: sample, reconstruct, interpolate. What it shows is computed in `studio`."""
