"""The web page of `vavae serve`: sample, reconstruct, interpolate. `studio` computes the images."""
