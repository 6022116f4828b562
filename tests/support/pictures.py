"""Pictures for tests: pixels, files, data: URLs, and requests that hold some."""

from __future__ import annotations

import base64
import io
import random
from typing import TYPE_CHECKING, Any

from PIL import Image

from support.engine_builders import GREEDY, runtime_config
from terrace_runtime.engine.request import ImagePart, PromptPart, Request

if TYPE_CHECKING:
    from terrace_runtime.contract import RuntimeConfig

PROJECTOR = "1" * 64


def seeing_config(**changes: Any) -> RuntimeConfig:
    """A small engine whose model has a projector."""
    values: dict[str, Any] = {"projector_path": "/models/eyes.gguf", "projector_digest": PROJECTOR}
    return runtime_config(**(values | changes))


def picture(seed: int = 0, width: int = 48, height: int = 48) -> ImagePart:
    """Random pixels; the fake projector makes a row of every 16 x 16 of them."""
    return ImagePart(random.Random(seed).randbytes(width * height * 3), width, height)


def image_request(name: str, *parts: str | ImagePart, **changes: Any) -> Request:
    """A greedy request for texts and images in order."""
    values: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 24, "add_bos": False}
    prompt = tuple(PromptPart(part) if isinstance(part, str) else part for part in parts)
    return Request(id=name, prompt=prompt, **(values | changes))


def file_of(image: ImagePart, kind: str = "PNG", **options: Any) -> bytes:
    """``image`` as a file."""
    buffer = io.BytesIO()
    pixels = Image.frombytes("RGB", (image.width, image.height), image.rgb)
    pixels.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(file: bytes, kind: str = "image/png") -> str:
    """``file`` as clients send it."""
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"
