"""Decodes images into pixels in a child that can be killed.

Owns: the child's life, the time limit, one image at a time, the bound on a request's pixels. Does
not own: decoding itself (``image_child.py``) or the bytes of a file (``image_url.py``). Next:
``routes_generate.py`` puts the pixels where the images stood.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Final

import orjson

from terrace_runtime.api.errors import ApiError, unavailable
from terrace_runtime.api.image_url import image_files
from terrace_runtime.contract import IMAGE_SIDE, MAX_IMAGE_PIXELS, MAX_REQUEST_PIXELS
from terrace_runtime.engine.request import ImagePart

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Sequence

    from terrace_runtime.api.content_parts import ImageField

SMALL_SIDE: Final = 512
"""Pixels of ``detail: low``, as OpenAI has it."""
_START_SECONDS: Final = 20.0


class ImageDecoder:
    """One child at a time, started when the first image comes; one that hangs is killed."""

    def __init__(self, decode_s: float = 10.0, wait_s: float = 15.0) -> None:
        """``decode_s``: bound of one image; ``wait_s``: bound of waiting for others' images."""
        self._decode_s = decode_s
        self._wait_s = wait_s
        self._child: Process | None = None
        self._lock = asyncio.Lock()

    async def decode(self, images: Sequence[ImageField], copies: int = 1) -> list[ImagePart]:
        """Pixels of a request's images, of which the engine will hold ``copies``.

        Raises ApiError 400 that names the field, or 503 when too many wait.
        """
        parts: list[ImagePart] = []
        total = 0
        for image, file in zip(images, image_files(images), strict=True):
            # A client that leaves must not cut an exchange in half.
            work = asyncio.create_task(self._decode(image, file))
            work.add_done_callback(lambda task: task.cancelled() or task.exception())
            part = await asyncio.shield(work)
            total += part.width * part.height * copies
            if total > MAX_REQUEST_PIXELS:
                times = f", {copies} times for n," if copies > 1 else ""
                raise _bad(
                    image,
                    f"with this image the request's images have{times} {total} pixels, "
                    f"{MAX_REQUEST_PIXELS} are the most: send fewer or smaller ones, "
                    "or ask for detail: low",
                )
            parts.append(part)
        return parts

    async def close(self) -> None:
        """Stop; safe to call twice."""
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
            # The transport is closed by asyncio only when its pipes are.
            child._transport.close()  # type: ignore[attr-defined] # noqa: SLF001 - no public way

    async def _decode(self, image: ImageField, file: bytes) -> ImagePart:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._lock.acquire()
        except TimeoutError:
            raise unavailable("too many images are being decoded", "busy") from None
        try:
            return await self._exchange(image, file)
        finally:
            self._lock.release()

    async def _exchange(self, image: ImageField, file: bytes) -> ImagePart:
        child = self._child
        is_new = child is None or child.returncode is not None
        if child is None or is_new:
            await self.close()
            child = self._child = await _start()
        assert child.stdin is not None
        assert child.stdout is not None
        side = SMALL_SIDE if image.is_small else IMAGE_SIDE
        asked = {"size": len(file), "side": side, "max_pixels": MAX_IMAGE_PIXELS}
        limit_s = self._decode_s + (_START_SECONDS if is_new else 0)
        try:
            async with asyncio.timeout(limit_s):
                child.stdin.writelines((orjson.dumps(asked), b"\n", file))
                await child.stdin.drain()
                answer = orjson.loads(await child.stdout.readline())
                if "error" in answer:
                    raise _bad(image, answer["error"])
                width, height = int(answer["width"]), int(answer["height"])
                rgb = await child.stdout.readexactly(width * height * 3)
        except TimeoutError:
            await self.close()
            raise _bad(image, f"it took longer than {self._decode_s:g} s to decode") from None
        except (OSError, ValueError, EOFError):
            await self.close()
            raise _bad(image, "decoding it took more memory or time than an image may") from None
        return ImagePart(rgb, width, height)


async def _start() -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "terrace_runtime.api.image_child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


def _bad(image: ImageField, why: str) -> ApiError:
    return ApiError(400, f"{image.where}: {why}", param=image.where, code="bad_image")
