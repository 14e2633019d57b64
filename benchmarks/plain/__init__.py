"""Plain implementations in the style of published training scripts, which paired.py compares ours with."""
