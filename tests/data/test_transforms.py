"""Crops, conversions between pixels and images, and loading."""

import io
from fractions import Fraction
from threading import Barrier

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vavae import rng
from vavae.data import (
    DemoImages,
    FolderImages,
    InMemoryImages,
    center_crop,
    flip_horizontally,
    load_images,
    load_pixels,
    to_tensor,
    to_uint8,
    transforms,
)
from vavae.data.transforms import as_images, published_random_crop
from vavae.errors import UserError

DEMO = DemoImages("test")


def photograph(width: int, height: int) -> Image.Image:
    """Return a mosaic of demo images of this size."""
    rows, columns = -(-height // 32), -(-width // 32)
    tiles = DEMO.pixels[np.arange(rows * columns) % len(DEMO)].reshape(rows, columns, 32, 32, 3)
    pixels = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * 32, columns * 32, 3)[:height, :width]
    return Image.fromarray(np.ascontiguousarray(pixels))


def adm_center_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """Center crop in arrays, as a second implementation: halving is a mean of 2x2 pixels."""
    while min(pixels.shape[:2]) >= 2 * size:
        height, width = (side // 2 * 2 for side in pixels.shape[:2])
        assert (height, width) == pixels.shape[:2], "the test uses even sides"
        # Pillow resizes rows first, then columns, and rounds after each.
        rows = np.floor(pixels.reshape(height, width // 2, 2, 3).astype(np.float64).mean(axis=2) + 0.5)
        pixels = np.floor(rows.reshape(height // 2, 2, width // 2, 3).mean(axis=1) + 0.5).astype(np.uint8)
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    resized = np.asarray(Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.BICUBIC))
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    return resized[top : top + size, left : left + size]


@pytest.mark.parametrize(
    ("width", "height", "size"), [(512, 256, 64), (256, 320, 64), (96, 71, 64), (40, 64, 64), (400, 256, 32)]
)
def test_center_crop_matches_second_implementation(width, height, size):
    image = photograph(width, height)
    ours = np.asarray(center_crop(image, size))
    assert ours.shape == (size, size, 3)
    assert (ours == adm_center_crop(np.asarray(image), size)).all()


def test_center_crop_at_native_size():
    assert (np.asarray(center_crop(DEMO.image(3), 32)) == DEMO.pixels[3]).all()


def test_center_crop_takes_the_middle():
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 32:64] = DEMO.pixels[5]
    assert (np.asarray(center_crop(Image.fromarray(wide), 32)) == DEMO.pixels[5]).all()


def bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize bilinearly without antialiasing, with half-pixel centers, in float64."""

    def axis(length: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        center = np.clip((np.arange(target) + 0.5) * length / target - 0.5, 0, length - 1)
        low = np.floor(center).astype(int)
        return low, np.minimum(low + 1, length - 1), center - low

    top, bottom, down = axis(pixels.shape[0], height)
    left, right, across = axis(pixels.shape[1], width)
    p = pixels.astype(np.float64)
    rows = p[top] * (1 - down)[:, None, None] + p[bottom] * down[:, None, None]
    return rows[:, left] * (1 - across)[:, None] + rows[:, right] * across[:, None]


def test_published_random_crop_is_a_window():
    image = photograph(150, 100)
    expected = bilinear(np.asarray(image), 64, 96)
    lefts = set()
    for position in range(40):
        crop = np.asarray(published_random_crop(image, 64, seed=1, position=position)).astype(float)
        assert crop.shape == (64, 64, 3)
        errors = [np.abs(crop - expected[:, left : left + 64]).max() for left in range(33)]
        assert min(errors) <= 0.51
        lefts.add(int(np.argmin(errors)))
    assert len(lefts) > 15 and min(lefts) < 6 and max(lefts) > 26


def test_random_crop_depends_on_seed_and_position():
    image = photograph(150, 100)

    def crop(seed: int, position: int) -> bytes:
        return published_random_crop(image, 64, seed, position).tobytes()

    assert crop(1, 2) == crop(1, 2)
    assert len({crop(seed, position) for seed in range(2) for position in range(5)}) >= 8


def test_pixel_round_trip():
    values = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(1, 16, 16, 3).contiguous()
    images = to_tensor(values)
    assert images.shape == (1, 3, 16, 16) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(images[0, 0].flatten().double(), (torch.arange(256.0) / 127.5 - 1).double())
    assert torch.equal(to_uint8(images), values)


def test_to_uint8_clamps_and_truncates():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.0039, 1.0, 7.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]
    with pytest.raises(ValueError, match="uint8"):
        to_tensor(np.zeros((2, 3, 4, 4), dtype=np.uint8))


@settings(max_examples=50, deadline=None)
@given(st.floats(-1.25, 1.25))
def test_to_uint8_rounds_to_nearest(x):
    value = int(to_uint8(torch.full((3, 1, 1), x))[0, 0, 0])
    assert abs(value - min(max((x + 1) * 127.5, 0), 255)) <= 0.5001


def test_flip():
    images = to_tensor(DEMO.pixels[:3])
    mask = torch.tensor([True, False, True])
    flipped = flip_horizontally(images, mask)
    assert (to_uint8(flipped).numpy()[[0, 2]] == DEMO.pixels[[0, 2]][:, :, ::-1]).all()
    assert torch.equal(flipped[1], images[1])
    assert torch.equal(flip_horizontally(flip_horizontally(images)), images)


def test_load_images_from_folder_and_memory(tmp_path):
    for i in range(5):
        photograph(50 + i, 70 - i).save(tmp_path / f"{i}.png")
    source = FolderImages(tmp_path)
    pixels = load_pixels(source, torch.tensor([4, 0, 4]), 48)
    assert pixels.shape == (3, 48, 48, 3) and pixels.dtype == torch.uint8
    assert (pixels[0].numpy() == np.asarray(center_crop(source.image(4), 48))).all()
    assert torch.equal(pixels[0], pixels[2]) and not torch.equal(pixels[0], pixels[1])
    memory = InMemoryImages(source, 48)
    assert torch.equal(load_images(memory, [4, 0], 48), to_tensor(pixels[:2]))
    assert memory.class_names == source.class_names and len(memory) == 5


def test_threads_decode_a_batch(tmp_path, monkeypatch):
    """They work at once, keep the order, and raise errors."""
    for i in range(3):
        photograph(50 + i, 70 - i).save(tmp_path / f"{i}.png")
    source = FolderImages(tmp_path)
    expected = load_pixels(source, [2, 0, 1], 48)
    together, image = Barrier(3, timeout=60), source.image

    def image_of_all(index):
        together.wait()  # until three threads are here
        return image(index)

    monkeypatch.setattr(source, "image", image_of_all)
    with torch.inference_mode():  # does not apply to threads
        assert torch.equal(load_pixels(source, [2, 0, 1], 48, workers=3), expected)
    monkeypatch.undo()
    (tmp_path / "1.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"cannot read image .*1\.png"):
        load_images(source, [2, 0, 1], 48, workers=2)


def test_array_images_load_like_others():
    fast = load_pixels(DEMO, [7, 3], 32)
    slow = np.stack([np.asarray(center_crop(DEMO.image(i), 32)) for i in (7, 3)])
    assert (fast.numpy() == slow).all()
    fast += 1  # a copy: the shared array must not change
    assert (load_pixels(DEMO, [7, 3], 32).numpy() == slow).all()


def test_to_uint8_refuses_pixels():
    with pytest.raises(ValueError, match="images must be"):
        to_uint8(torch.zeros(2, 8, 8, 3))
    with pytest.raises(ValueError, match="images must be"):
        to_uint8(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def square_center_crop(image: Image.Image, size: int) -> Image.Image:
    """Center crop for square crops only."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


@settings(max_examples=40)
@given(st.integers(9, 200), st.integers(9, 200), st.integers(8, 48))
def test_square_crops_are_unchanged(width, height, size):
    image = photograph(width, height)
    assert center_crop(image, size).tobytes() == square_center_crop(image, size).tobytes()


def adm_rectangle(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Center crop of a rectangle in arrays and fractions, as a second implementation; sides must be even."""
    while pixels.shape[0] >= 2 * height and pixels.shape[1] >= 2 * width:
        rows, columns = pixels.shape[0] // 2, pixels.shape[1] // 2
        assert pixels.shape[:2] == (2 * rows, 2 * columns), "the test uses even sides"
        halved = np.floor(pixels.reshape(2 * rows, columns, 2, 3).astype(np.float64).mean(axis=2) + 0.5)
        pixels = np.floor(halved.reshape(rows, 2, columns, 3).mean(axis=1) + 0.5).astype(np.uint8)
    rows, columns = pixels.shape[:2]
    # The side that would otherwise be too short decides.
    scale = Fraction(height, rows) if height * columns >= width * rows else Fraction(width, columns)
    resized = np.asarray(Image.fromarray(pixels).resize((round(columns * scale), round(rows * scale)), Image.BICUBIC))
    top, left = (resized.shape[0] - height) // 2, (resized.shape[1] - width) // 2
    return resized[top : top + height, left : left + width]


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(512, 256, (32, 96)), (256, 320, (64, 40)), (96, 71, (48, 80)), (40, 64, (24, 40)), (400, 80, (24, 40))],
)
def test_rectangle_matches_second_implementation(width, height, size):
    image = photograph(width, height)
    ours = np.asarray(center_crop(image, size))
    assert ours.shape == (*size, 3)
    assert (ours == adm_rectangle(np.asarray(image), *size)).all()


@settings(max_examples=60)
@given(*[st.integers(8, 300)] * 2, *[st.integers(8, 64)] * 2, st.integers(0, 99))
def test_crops_contain_only_the_image(width, height, rows, columns, position):
    """Pillow fills the outside of an image with black, so crops of a white image must be white."""
    white = Image.new("RGB", (width, height), (255, 255, 255))
    for crop in (
        center_crop(white, (rows, columns)),
        published_random_crop(white, (rows, columns), 0, position),
    ):
        assert crop.size == (columns, rows) and crop.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize(("width", "height", "way"), [(150, 60, 1), (100, 150, 0)])
def test_random_rectangle_moves_along_longer_side(width, height, way):
    image, (rows, columns) = photograph(width, height), (48, 64)
    scale = max(rows / height, columns / width)
    whole = bilinear(np.asarray(image), round(height * scale), round(width * scale))
    room = whole.shape[way] - (rows, columns)[way]
    assert whole.shape[1 - way] == (rows, columns)[1 - way] and room > 20
    starts = set()
    for position in range(30):
        crop = np.asarray(published_random_crop(image, (rows, columns), 1, position)).astype(float)
        windows = [whole[:, s : s + columns] if way else whole[s : s + rows] for s in range(room + 1)]
        errors = [np.abs(crop - window).max() for window in windows]
        assert min(errors) <= 0.51
        starts.add(int(np.argmin(errors)))
    assert len(starts) > 10 and min(starts) < 6 and max(starts) > room - 6


def test_rectangles_from_folder_and_memory(tmp_path):
    for i in range(3):
        photograph(90 + i, 50 - i).save(tmp_path / f"{i}.png")
    source = FolderImages(tmp_path)
    pixels = load_pixels(source, [2, 0], (24, 40))
    assert pixels.shape == (2, 24, 40, 3)
    assert (pixels[0].numpy() == np.asarray(center_crop(source.image(2), (24, 40)))).all()
    memory = InMemoryImages(source, (24, 40))
    assert torch.equal(load_images(memory, [2, 0], (24, 40)), to_tensor(pixels))
    assert memory.pixels.shape == (3, 24, 40, 3)


THIN = [(1, 5000, 32), (5000, 1, 32), (1, 5001, 16), (7, 3000, (24, 32)), (3000, 2, (32, 24))]


def crops_of(image: Image.Image, size: object, position: int) -> list[Image.Image]:
    return [center_crop(image, size), published_random_crop(image, size, 0, position)]


@pytest.mark.parametrize(("width", "height", "size"), THIN)
def test_thin_images_are_cut_before_scaling(width, height, size, monkeypatch):
    """Without this, the first one would become an image of 32x160,000 pixels."""
    largest = []
    covering = transforms._covering
    monkeypatch.setattr(transforms, "_covering", lambda *given: largest.append(covering(*given)) or largest[-1])
    for crop in crops_of(photograph(width, height), size, 3):
        assert crop.size == (size, size) if isinstance(size, int) else crop.size == size[::-1]
    assert len(largest) == 2 and all(max(sides) <= 34 * 32 for sides in largest)


@pytest.mark.parametrize(("width", "height", "size"), THIN)
def test_crops_of_thin_images_equal_whole_crops(width, height, size):
    """The image is a ramp, so the value of a crop is its position."""
    ramp = np.linspace(0, 255, max(width, height)).reshape((height, 1) if height > width else (1, width))
    image = Image.fromarray(np.repeat(np.broadcast_to(ramp, (height, width))[..., None], 3, 2).astype(np.uint8))
    assert abs(np.asarray(center_crop(image, size)).mean() - 127.5) < 1
    found = []
    for position in range(10):
        across, down = rng.uniform(0, "random crop", [position], (2,))[0].tolist()
        place = np.asarray(published_random_crop(image, size, 0, position)).mean() / 255
        assert abs(place - (down if height > width else across)) < 0.03
        found.append(place)
    assert max(found) - min(found) > 0.5


def test_center_of_a_thin_image():
    """The crop of 5001 rows is one pixel of the source, number 2500."""
    pixels = np.zeros((5001, 1, 3), np.uint8)
    pixels[2500] = 200
    crop = np.asarray(center_crop(Image.fromarray(pixels), 256))
    whole = np.asarray(Image.fromarray(pixels[2492:2509]).resize((256, 17 * 256), Image.Resampling.BICUBIC))
    assert (crop == whole[8 * 256 : 9 * 256]).all()


BATCH = to_tensor(DEMO.pixels[:2])


@pytest.mark.parametrize(
    "given",
    [
        [DEMO.image(0), DEMO.image(1)],
        (DEMO.pixels[0], DEMO.image(1)),
        DEMO.pixels[:2],
        [DEMO.pixels[0], BATCH[1]],
        BATCH,
        BATCH.double(),
        BATCH.numpy(),
        [BATCH[0], BATCH[1:]],
        np.asarray(DEMO.pixels[:2])[:, ::-1][:, ::-1],
    ],
)
def test_as_images_accepts_usual_forms(given):
    assert torch.equal(as_images(given).float(), BATCH)


def test_one_image_is_a_batch_of_one():
    for picture in (DEMO.image(0), DEMO.pixels[0], BATCH[0], BATCH[0].numpy(), [DEMO.image(0)]):
        assert torch.equal(as_images(picture), BATCH[:1])
    assert as_images(BATCH[:0]).shape == (0, 3, 32, 32)


def test_as_images_reads_pillow_images_like_files():
    gray, turned = DEMO.image(0).convert("L"), Image.new("RGB", (40, 24))
    turned.getexif()[0x0112] = 6
    assert torch.equal(as_images(gray), to_tensor(gray.convert("RGB"))[None])
    assert as_images(DEMO.image(0).convert("RGBA")).shape == (1, 3, 32, 32)
    stored = io.BytesIO()
    turned.save(stored, "jpeg", exif=turned.getexif())
    with Image.open(stored) as opened:
        assert as_images(opened).shape == (1, 3, 40, 24)
        assert opened.getexif()[0x0112] == 6 and opened.info["exif"]  # the image itself is unchanged


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((BATCH + 1) * 127.5, r"must be in \[-1, 1\], got .* to 2.*x / 127.5 - 1"),
        (torch.full((1, 3, 8, 8), float("nan")), r"must be in \[-1, 1\], got nan to nan"),
        (torch.full((1, 3, 8, 8), float("-inf")), r"got -inf to -inf"),
        (BATCH * 2.1, r"must be in \[-1, 1\]"),  # as normalized for ImageNet
        (torch.zeros(1, 1, 8, 8), r"must be \(3, H, W\) or \(B, 3, H, W\), got \(1, 1, 8, 8\)"),
        (torch.zeros(1, 8, 8, 3), "must be"),
        (BATCH.to(torch.int64), r"torch\.int64 is not in"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.bool), r"torch\.bool is not in"),
        (np.zeros((8, 8, 3), np.int64), "int64 is not in"),
        (np.zeros((8, 8), np.uint8), r"must be \(H, W, 3\) or \(B, H, W, 3\), got \(8, 8\)"),
        (DEMO.pixels[:2].transpose(0, 3, 1, 2), r"got \(2, 3, 32, 32\)"),
        ((DEMO.pixels[:2] > 128).astype(np.uint8), "0 and 1 only"),
        ([], "an empty list"),
        (None, "got NoneType 'None'"),
        ("cat.png", r"got str 'cat\.png'; vavae\.data\.read_rgb reads a file"),
        ([DEMO.image(0), photograph(40, 32)], "of one size, got 32x32, 40x32"),
        (Image.new("F", (8, 8)), "32-bit numbers"),
    ],
)
def test_other_values_are_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        as_images(given)
