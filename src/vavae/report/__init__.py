"""Figures, image grids, curves and page parts that several pages share."""
