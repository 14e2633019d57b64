"""The whole path on embedded images, and a page about it."""
