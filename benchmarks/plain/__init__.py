"""The same work written down the plain way, as published training scripts do it: what paired.py measures against."""
