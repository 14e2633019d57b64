"""Image formats: the file endings that count as images, and the Pillow decoders that may open them."""

_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "AVIF": (".avif",),
}

IMAGE_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
IMAGE_FORMATS = tuple(_SUFFIXES)  # for `Image.open(..., formats=IMAGE_FORMATS)`
