"""Messages whose content is text, or pieces of text and images in order.

Owns: what of a message is accepted, and a conversation as turns that a chat template can render,
with the images apart. Does not own: what is in an image (``image_url.py``, ``image_decoder.py``)
or the rest of a body (``schemas.py``). Next: ``chat_template.py`` renders turns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from terrace_runtime.api.errors import ApiError
from terrace_runtime.api.text_guard import TextGuard, image_mark
from terrace_runtime.contract import MAX_IMAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from terrace_runtime.engine.request import PromptPart

MAX_PARTS: Final = 256
_TEXTS: Final = ("text", "input_text", "output_text")
_IMAGE: Final = "image_url"


class ImageUrl(BaseModel):
    """Where an image is: in the URL itself."""

    model_config = ConfigDict(extra="ignore")

    url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high"] | None = None
    """low: scaled to 512 pixels before it is looked at."""


class ContentPart(BaseModel):
    """A piece of a message: text or an image."""

    model_config = ConfigDict(extra="ignore")

    type: str = Field(max_length=64)
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(BaseModel):
    """One turn of the conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        str | Annotated[list[ContentPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None
    ) = None
    tool_calls: list[Any] | None = None


class Turn(NamedTuple):
    """A message as chat templates see it."""

    role: str
    content: tuple[str | int, ...]
    """Texts, and numbers of images in the order of the conversation."""

    def marked(self, guard: TextGuard, nonce: str) -> list[str]:
        """The content with control tokens and images marked."""
        return [
            guard.mark(piece) if isinstance(piece, str) else image_mark(nonce, piece)
            for piece in self.content
        ]


@dataclass(frozen=True, slots=True)
class ImageField:
    """An image as a client sent it, and where."""

    url: str = field(repr=False)
    is_small: bool
    """``detail`` is low."""
    where: str
    """The field, for errors."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """All messages of a body."""

    turns: list[Turn]
    images: list[ImageField]


def conversation(messages: Iterable[Message]) -> Conversation:
    """Messages as turns and images; raises ApiError that names the field for what is neither."""
    images: list[ImageField] = []
    turns = [_turn(f"messages[{index}]", message, images) for index, message in enumerate(messages)]
    if len(images) > MAX_IMAGES:
        raise ApiError(
            400,
            f"the messages hold {len(images)} images, a request may hold {MAX_IMAGES}: send fewer",
            param="messages",
            code="too_many_images",
        )
    return Conversation(turns, images)


def check_images(parts: Sequence[PromptPart | int], turns: Iterable[Turn]) -> None:
    """Raise ApiError unless the rendered ``parts`` have each image of ``turns`` once, in order."""
    wanted = [piece for turn in turns for piece in turn.content if isinstance(piece, int)]
    found = [part for part in parts if isinstance(part, int)]
    if found != wanted:
        raise ApiError(
            400,
            f"the model's chat template shows {len(found)} of the {len(wanted)} images, or in "
            "another order: put images into the last user message",
            param="messages",
            code="bad_image",
        )


def _turn(where: str, message: Message, images: list[ImageField]) -> Turn:
    # The result of a tool is text that the template renders; calling tools is what is missing.
    if message.role == "function" or message.tool_calls:
        raise ApiError(
            400, f"{where}: tools are not supported yet", param=where, code="unsupported_parameter"
        )
    if message.content is None and message.role != "assistant":
        raise ApiError(400, f"{where}.content is missing", param=f"{where}.content")
    role = "system" if message.role == "developer" else message.role
    content = message.content or ""
    if isinstance(content, str):
        return Turn(role, (content,))
    pieces: list[str | int] = []
    for index, part in enumerate(content):
        place = f"{where}.content[{index}]"
        if part.type == _IMAGE:
            images.append(_image(place, part))
            pieces.append(len(images) - 1)
        elif pieces and isinstance(pieces[-1], str):
            pieces[-1] += _text(place, part)
        else:
            pieces.append(_text(place, part))
    return Turn(role, tuple(pieces) or ("",))


def _image(where: str, part: ContentPart) -> ImageField:
    if part.image_url is None:
        raise ApiError(400, f"{where}.image_url is missing", param=f"{where}.image_url")
    is_small = part.image_url.detail == "low"
    return ImageField(part.image_url.url, is_small, f"{where}.image_url.url")


def _text(where: str, part: ContentPart) -> str:
    if part.type not in _TEXTS:
        raise ApiError(
            400,
            f"{where}.type {part.type!r} is not supported yet; text and image_url are",
            param=f"{where}.type",
            code="unsupported_parameter",
        )
    if part.text is None:
        raise ApiError(400, f"{where}.text is missing", param=f"{where}.text")
    return part.text
