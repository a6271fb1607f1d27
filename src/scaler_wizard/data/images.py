"""Bytes or a file to a checked RGB picture: formats by a fixed list, sizes known before a pixel is decoded.

Every picture is hostile input. What is drawn in it is nobody's instruction: it reaches a model as pixels and
never as text. Knows no model and no torch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import stat
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from scaler_wizard.errors import DataFileMissingError, ImageError, ImageTooLargeError

# What Pillow reads without starting another program (EPS would) and that screens and photographs come in.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_EXPECTED: Final = f"a picture as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
# What Pillow's decoders raise on damaged files.
_DECODER_ERRORS: Final = (
    OSError, ValueError, TypeError, SyntaxError, EOFError, IndexError, KeyError, OverflowError, MemoryError,
    struct.error, AttributeError, ZeroDivisionError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest picture that is read."""

    max_bytes: int = 20_000_000
    """Bytes of the file."""
    max_pixels: int = 16_000_000
    """Width times height; 16 million take 48 MB in memory."""
    max_ratio: int = 100
    """Longer side over shorter side; Qwen's image processor ends at 200."""


DEFAULT_IMAGE_LIMITS: Final = ImageLimits()


@dataclass(frozen=True, slots=True, eq=False)
class CheckedImage:
    """A decoded picture, upright, opaque RGB."""

    image: Image.Image
    sha256: str
    """Of size and pixels: one picture in two files has one hash."""
    animated: bool
    """Whether the file holds further frames; the picture is the first."""


def read_image(source: bytes | Path, limits: ImageLimits = DEFAULT_IMAGE_LIMITS) -> CheckedImage:
    """Decode and check a picture.

    Turned as its EXIF orientation says; transparency is laid on white; 16-bit grey is scaled to 8.

    Raises:
        DataFileMissingError: no regular file that can be read at that path.
        ImageError: no picture of a known format, damaged, cut off, or absurdly narrow.
        ImageTooLargeError: more bytes or pixels than the limits; nothing was decoded.
    """
    name, data = ("the picture", source) if isinstance(source, bytes) else _read_file(source, limits)
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(name, limits)
    with warnings.catch_warnings():
        # Pillow warns of bombs from 89 million pixels on, where ours has refused, and of damaged EXIF.
        warnings.simplefilter("ignore")
        opened = _open(name, data, limits)
        animated = bool(getattr(opened, "is_animated", False))
        try:
            opened.load()
            image = _to_rgb(_upright(opened))
        except _DECODER_ERRORS as error:
            raise _damaged(name, error) from None
    digest = hashlib.sha256(f"{image.width}x{image.height}/".encode() + image.tobytes()).hexdigest()
    return CheckedImage(image, digest, animated)


def image_from_base64(text: str, limits: ImageLimits = DEFAULT_IMAGE_LIMITS) -> CheckedImage:
    """The picture in a base64 text, as requests over HTTP carry it. Raises as `read_image`."""
    if len(text) > limits.max_bytes * 4 // 3 + 4:
        raise _too_many_bytes("the picture", limits)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(
            "the picture is not base64", "standard base64 of the file's bytes", "encode the file as it is"
        ) from None
    return read_image(data, limits)


def _read_file(path: Path, limits: ImageLimits) -> tuple[str, bytes]:
    name = str(path)
    try:
        # Not to wait for the other end of a named pipe; a regular file is not affected.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataFileMissingError(
            f"{name} cannot be read ({reason})", "a picture file", "check the path"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataFileMissingError(f"{name} is not a regular file", "a picture file", "check the path")
    with os.fdopen(descriptor, "rb") as file:
        return name, file.read(limits.max_bytes + 1)


def _open(name: str, data: bytes, limits: ImageLimits) -> Image.Image:
    """Read the header alone, and judge the size that it claims."""
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_many_pixels(name, "far more", limits) from None
    except UnidentifiedImageError:
        what = "is empty" if not data else "is no picture of a known format"
        raise ImageError(f"{name} {what}", _EXPECTED, "save it as PNG") from None
    except _DECODER_ERRORS as error:
        raise _damaged(name, error) from None
    width, height = opened.size
    if width * height > limits.max_pixels:
        raise _too_many_pixels(name, f"{width:,} x {height:,} pixels, more", limits)
    if min(width, height) < 1 or max(width, height) > limits.max_ratio * min(width, height):
        raise ImageError(
            f"{name} is {width:,} x {height:,} pixels",
            f"sides of at most {limits.max_ratio} to 1",
            "cut the picture into pieces",
        )
    return opened


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:
        # Damaged notes about a sound picture: it is shown as it lies in the file.
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (255, 255, 255, 255))
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    # A copy without the file's palette, notes and profile.
    return Image.fromarray(np.array(image.convert("RGB")))


def _damaged(name: str, error: BaseException) -> ImageError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ImageError(
        f"{name} is damaged or cut off ({reason})", _EXPECTED, "save the picture again, or send it again"
    )


def _too_many_bytes(name: str, limits: ImageLimits) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"{name} has more than {limits.max_bytes:,} bytes", "a smaller file", "scale the picture down"
    )


def _too_many_pixels(name: str, found: str, limits: ImageLimits) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"{name} claims {found} than the {limits.max_pixels:,} that are read",
        "a smaller picture",
        "scale it down; a model sees no more than about a million pixels",
    )
