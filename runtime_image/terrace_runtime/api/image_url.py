"""Images out of ``data:`` URLs: the only ones that are taken, for the runtime fetches nothing.

Owns: what a URL may be, and the bounds on bytes. Does not own: decoding the file
(``image_decoder.py``). Pure. The form is RFC 2397's.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final

from terrace_runtime.api.errors import ApiError
from terrace_runtime.contract import MAX_IMAGE_BYTES, MAX_REQUEST_IMAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace_runtime.api.content_parts import ImageField

_MAX_HEAD: Final = 256
_HEAD: Final = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),", re.IGNORECASE)
_TYPES: Final = ("image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif")


def image_files(images: Sequence[ImageField]) -> list[bytes]:
    """The file in each image's URL; raises ApiError that names the field and the bound."""
    files = []
    total = 0
    for image in images:
        file = _file(image)
        total += len(file)
        if total > MAX_REQUEST_IMAGE_BYTES:
            raise bad_image(
                image,
                f"with this image the request holds {total} bytes of images, "
                f"{MAX_REQUEST_IMAGE_BYTES} are the most: send fewer or smaller ones",
            )
        files.append(file)
    return files


def _file(image: ImageField) -> bytes:
    head = _HEAD.match(image.url[:_MAX_HEAD])
    if head is None:
        raise _no_data_url(image)
    kind, options = head[1].lower(), head[2].lower().split(";")
    if kind not in _TYPES:
        raise bad_image(image, f"the type is {kind!r:.80}; PNG, JPEG, WebP and GIF are taken")
    if "base64" not in options:
        raise bad_image(image, "the data must be base64: data:image/png;base64,...")
    encoded = len(image.url) - head.end()
    if encoded * 3 // 4 > MAX_IMAGE_BYTES + 2:
        raise bad_image(
            image,
            f"the image has about {encoded * 3 // 4} bytes, {MAX_IMAGE_BYTES} are the most: "
            "scale it down or compress it",
        )
    try:
        file = base64.b64decode(image.url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_image(image, f"the data is not valid base64: {error}") from None
    if not file:
        raise bad_image(image, "the image is empty")
    return file


def _no_data_url(image: ImageField) -> ApiError:
    scheme = image.url.partition(":")[0].lower()
    if scheme in ("http", "https"):
        return bad_image(
            image,
            f"{scheme} URLs are not fetched: send the image itself as data:image/...;base64,...",
        )
    return bad_image(image, "it is no data URL: send the image as data:image/png;base64,...")


def bad_image(image: ImageField, why: str) -> ApiError:
    """400 that names the field of ``image``."""
    return ApiError(400, f"{image.where}: {why}", param=image.where, code="bad_image")
