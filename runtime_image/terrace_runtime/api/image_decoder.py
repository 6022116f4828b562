"""Decodes images into pixels in a child that can be killed.

Owns: the time limit, one image at a time, the bound on a request's pixels. Does not own: decoding
itself (``image_child.py``), the child's life (``killable.py``) or the bytes of a file
(``image_url.py``). Next: ``routes_generate.py`` puts the pixels where the images stood.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import orjson

from terrace_runtime.api.image_url import bad_image, image_files
from terrace_runtime.api.killable import KillableChild, undisturbed
from terrace_runtime.contract import IMAGE_SIDE, MAX_IMAGE_PIXELS, MAX_REQUEST_PIXELS
from terrace_runtime.engine.request import ImagePart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace_runtime.api.content_parts import ImageField

SMALL_SIDE: Final = 512
"""Pixels of ``detail: low``, as OpenAI has it."""
_START_SECONDS: Final = 20.0
_CHILD: Final = "terrace_runtime.api.image_child"


class ImageDecoder:
    """One child at a time, started when the first image comes; one that hangs is killed."""

    def __init__(self, decode_s: float = 10.0, wait_s: float = 15.0) -> None:
        """``decode_s``: bound of one image; ``wait_s``: bound of waiting for others' images."""
        self._decode_s = decode_s
        self._child = KillableChild(_CHILD, wait_s, "too many images are being decoded")

    async def decode(self, images: Sequence[ImageField], copies: int = 1) -> list[ImagePart]:
        """Pixels of a request's images, of which the engine will hold ``copies``.

        Raises ApiError 400 that names the field, or 503 when too many wait.
        """
        parts: list[ImagePart] = []
        total = 0
        for image, file in zip(images, image_files(images), strict=True):
            part = await undisturbed(self._decode(image, file))
            total += part.width * part.height * copies
            if total > MAX_REQUEST_PIXELS:
                times = f", {copies} times for n," if copies > 1 else ""
                raise bad_image(
                    image,
                    f"with this image the request's images have{times} {total} pixels, "
                    f"{MAX_REQUEST_PIXELS} are the most: send fewer or smaller ones, "
                    "or ask for detail: low",
                )
            parts.append(part)
        return parts

    async def close(self) -> None:
        """Stop; safe to call twice."""
        await self._child.kill()

    async def _decode(self, image: ImageField, file: bytes) -> ImagePart:
        async with self._child.turn():
            return await self._exchange(image, file)

    async def _exchange(self, image: ImageField, file: bytes) -> ImagePart:
        limit_s, child = self._decode_s, self._child.process
        if child is None:
            limit_s, child = limit_s + _START_SECONDS, await self._child.start()
        assert child.stdin is not None
        assert child.stdout is not None
        side = SMALL_SIDE if image.is_small else IMAGE_SIDE
        asked = {"size": len(file), "side": side, "max_pixels": MAX_IMAGE_PIXELS}
        try:
            async with asyncio.timeout(limit_s):
                child.stdin.writelines((orjson.dumps(asked), b"\n", file))
                await child.stdin.drain()
                answer = orjson.loads(await child.stdout.readline())
                if "error" in answer:
                    raise bad_image(image, answer["error"])
                width, height = int(answer["width"]), int(answer["height"])
                rgb = await child.stdout.readexactly(width * height * 3)
        except TimeoutError:
            await self.close()
            raise bad_image(image, f"it took longer than {self._decode_s:g} s to decode") from None
        except (OSError, ValueError, EOFError):
            await self.close()
            raise bad_image(
                image, "decoding it took more memory or time than an image may"
            ) from None
        return ImagePart(rgb, width, height)
