"""The process that decodes images: files of strangers in C libraries, so it lives alone.

Owns: from a file's bytes to RGB pixels within bounds of memory and processor time. Does not own:
the wall clock, which only the parent can hold (``image_decoder.py``).

On stdin, again and again: a line of JSON {size, side, max_pixels} and ``size`` bytes. On stdout: a
line of JSON {width, height} and three bytes for each pixel, or a line {error}.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import warnings
from typing import Any, Final

from PIL import Image, ImageOps, UnidentifiedImageError

from terrace_runtime.api.child_limits import grant_time, limit

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")
ADDRESS_BYTES: Final = 768 * 2**20
CPU_SECONDS: Final = 10
_SCALED_FIRST: Final = frozenset({"RGB", "RGBA", "L", "LA"})
"""Modes that are scaled as they are; others are made RGB before, or their colours would be lost."""
_WIDE_PIXELS: Final = 65_535


class _RefusedError(Exception):
    """An image that is not taken, and why."""


def main() -> None:
    """Serve one parent until it closes our stdin."""
    limit(resource.RLIMIT_AS, ADDRESS_BYTES)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_CORE, 0)
    # Bounds of our own hold; Pillow's would only warn.
    Image.MAX_IMAGE_PIXELS = None
    warnings.simplefilter("ignore")
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while line := source.readline():
        asked = json.loads(line)
        file = source.read(asked["size"])
        grant_time(CPU_SECONDS)
        pixels = b""
        answer: dict[str, Any]
        try:
            image = decode(file, asked["side"], asked["max_pixels"])
            pixels = image.tobytes()
            answer = {"width": image.width, "height": image.height}
        except _RefusedError as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {"error": "it needs more memory to be decoded than an image may"}
        except Exception as error:  # noqa: BLE001 - a broken file has many ways to say so
            answer = {"error": f"it cannot be decoded: {error}"[:300]}
        sink.write(json.dumps(answer).encode() + b"\n" + pixels)
        sink.flush()


def decode(file: bytes, side: int, max_pixels: int) -> Image.Image:
    """The first frame in RGB, upright, scaled to fit a square of ``side``; white shines through."""
    try:
        image: Image.Image = Image.open(io.BytesIO(file), formats=FORMATS)
    except UnidentifiedImageError:
        raise _RefusedError("it is no PNG, JPEG, WebP or GIF file") from None
    count = image.width * image.height
    if count > max_pixels:
        raise _RefusedError(
            f"it has {image.width} x {image.height} = {count} pixels, {max_pixels} are the most: "
            "scale it down"
        )
    if max(image.size) > side:
        # A JPEG is decoded at an eighth, a quarter or half of its size where that is enough.
        image.draft("RGB", (side, side))
    image.load()
    if max(image.size) > side and image.mode in _SCALED_FIRST:
        # What follows copies the image several times over: of a small one.
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image = _rgb(ImageOps.exif_transpose(image))
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits of grey: Pillow would cut at 255 instead of scaling.
        image = image.convert("F").point(lambda value: value * (255 / _WIDE_PIXELS)).convert("L")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        below = Image.new("RGBA", above.size, "white")
        return Image.alpha_composite(below, above).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


if __name__ == "__main__":
    main()
