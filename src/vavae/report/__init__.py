"""Figures, image grids, curves and parts of pages for several pages."""
