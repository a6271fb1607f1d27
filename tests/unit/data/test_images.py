"""Pictures from outside: every one is either checked RGB or a clear error."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scaler_wizard.data.images import CheckedImage, ImageLimits, image_from_base64, read_image
from scaler_wizard.errors import DataFileMissingError, ImageError, ImageTooLargeError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def checker(mode: str = "RGB") -> Image.Image:
    """8 x 4: a red pixel top left on blue."""
    image = Image.new("RGB", (8, 4), (0, 0, 255))
    image.putpixel((0, 0), (255, 0, 0))
    return image.convert(mode)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG header of that size with almost no data behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_a_picture_from_bytes_a_file_and_base64_is_the_same(tmp_path: Path) -> None:
    data = encoded(checker())
    path = tmp_path / "screen.png"
    path.write_bytes(data)
    seen = [read_image(data), read_image(path), image_from_base64(base64.b64encode(data).decode())]
    assert len({image.sha256 for image in seen}) == 1
    assert seen[0].image.getpixel((0, 0)) == (255, 0, 0)
    # Another compression of the same pixels is the same picture; one other pixel is not.
    assert read_image(encoded(checker(), "BMP")).sha256 == seen[0].sha256
    changed = checker()
    changed.putpixel((7, 3), (0, 0, 254))
    assert read_image(encoded(changed)).sha256 != seen[0].sha256
    assert read_image(encoded(changed.transpose(Image.Transpose.ROTATE_90))).image.size == (4, 8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        source = Image.fromarray(np.full((4, 8), 40_000, np.uint16))
    else:
        source = checker("RGB" if mode == "PA" else mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    checked = read_image(encoded(source if mode != "PA" else source.convert("P"), kind))
    assert checked.image.mode == "RGB"
    assert checked.image.size == (8, 4)
    if mode == "I;16":
        assert checked.image.getpixel((0, 0)) == (40_000 >> 8,) * 3


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert read_image(encoded(clear)).image.getpixel((1, 1)) == (255, 255, 255)
    assert read_image(encoded(Image.new("L", (4, 4), 7), transparency=7)).image.getpixel((0, 0)) == (255,) * 3


def test_a_turned_photograph_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    checked = read_image(encoded(checker(), "JPEG", exif=exif, quality=100))
    assert checked.image.size == (4, 8)


def test_damaged_notes_do_not_spoil_a_sound_picture() -> None:
    data = encoded(checker(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + bytes(40))
    assert read_image(data).image.size == (8, 4)


def test_the_first_picture_of_an_animation_is_taken_and_said() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    checked = read_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert checked.animated
    assert checked.image.getpixel((3, 3)) == (200, 0, 0)
    assert not read_image(encoded(frames[0], "GIF")).animated


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", bytes(5000)],
    ids=["empty", "text", "svg", "eps", "zeros"],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"empty|no picture"):
        read_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_no_damage_is_taken_for_a_picture_or_crashes(kind: str) -> None:
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 255, (40, 40, 3), np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(ImageError):
        read_image(data[: len(data) // 2])
    flips = np.random.RandomState(1).randint(0, len(data), 60)
    for at in flips:
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        try:
            checked = read_image(bytes(damaged), ImageLimits(max_pixels=100_000))
        except ImageError:
            continue
        assert isinstance(checked, CheckedImage)
        assert checked.image.mode == "RGB"


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 1)])
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(ImageTooLargeError, match=r"pixels|far more") as caught:
        read_image(png_claiming(width, height))
    assert "scale it down" in caught.value.todo


def test_too_many_bytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    limits = ImageLimits(max_bytes=100)
    path = tmp_path / "big.png"
    path.write_bytes(bytes(200))
    for source in (bytes(200), path):
        with pytest.raises(ImageTooLargeError, match="more than 100 bytes"):
            read_image(source, limits)
    with pytest.raises(ImageTooLargeError):
        image_from_base64("A" * 400, limits)


def test_a_hair_is_no_picture() -> None:
    with pytest.raises(ImageError, match="300 x 1"):
        read_image(encoded(Image.new("RGB", (300, 1))))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    for path in (tmp_path / "absent.png", tmp_path, fifo, Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(DataFileMissingError):
            read_image(path)


@pytest.mark.parametrize("text", ["not base64!", "é" * 8, "AAA"])
def test_what_is_not_base64_is_said(text: str) -> None:
    with pytest.raises(ImageError, match="not base64"):
        image_from_base64(text)
