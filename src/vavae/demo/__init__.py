"""The whole path on embedded images, and its page."""
