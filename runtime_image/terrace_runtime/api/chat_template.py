"""Renders conversations with the model's own chat template, in a child that can be killed.

Owns: the time limit, the default template. Does not own: the rendering itself
(``template_child``), the child's life (``killable``) or the marks of client text (``text_guard``).
Next: ``routes_generate``.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson
from typing_extensions import override

from terrace_runtime.api.content_parts import check_images
from terrace_runtime.api.errors import ApiError
from terrace_runtime.api.killable import KillableChild, undisturbed
from terrace_runtime.api.text_guard import TextGuard, split

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from terrace_runtime.api.content_parts import Turn
    from terrace_runtime.engine.request import ModelInfo, PromptPart

CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
START_SECONDS: Final = 20.0
_CHILD: Final = "terrace_runtime.api.template_child"


class Renderer(Protocol):
    """Turns conversations into prompts."""

    @property
    def is_default(self) -> bool:
        """Whether the model brought no template of its own."""

    async def start(self) -> str:
        """Get ready; returns what is wrong with the template, empty when nothing is."""

    async def render(self, turns: list[Turn]) -> tuple[PromptPart | int, ...]:
        """The prompt of a conversation; numbers stand for its images, each once and in order.

        Raises ApiError when the template refuses or fails.
        """

    async def close(self) -> None:
        """Stop; safe to call twice."""


class TemplateRenderer(Renderer):
    """One child at a time; a render that takes too long costs the child its life."""

    def __init__(self, info: ModelInfo, render_s: float = 10.0, wait_s: float = 15.0) -> None:
        """``render_s``: bound of one render; ``wait_s``: bound of waiting for other renders."""
        self._is_default = not info.chat_template
        self._setting = {
            "template": info.chat_template or CHATML,
            "bos": info.bos,
            "eos": info.eos,
        }
        self._guard = TextGuard(info.special_tokens)
        self._render_s = render_s
        self._child = KillableChild(_CHILD, wait_s, "too many chat templates are being rendered")

    @property
    @override
    def is_default(self) -> bool:
        return self._is_default

    @override
    async def start(self) -> str:
        try:
            async with self._child.turn():
                await self._running_child()
        except ApiError as error:
            return str(error)
        return ""

    @override
    async def render(self, turns: list[Turn]) -> tuple[PromptPart | int, ...]:
        nonce = str(secrets.randbits(128))
        marked = [(turn.role, turn.marked(self._guard, nonce)) for turn in turns]
        answer = await undisturbed(self._render(orjson.dumps(marked) + b"\n"))
        if answer.get("error") == "refused":
            raise ApiError(
                400, f"the model's chat template refuses: {answer['message']}", param="messages"
            )
        if "error" in answer:
            raise _broken(str(answer["message"]))
        parts = split(answer["text"], nonce)
        check_images(parts, turns)
        return parts

    async def _render(self, line: bytes) -> dict[str, Any]:
        async with self._child.turn():
            return await self._exchange(await self._running_child(), line, self._render_s)

    @override
    async def close(self) -> None:
        await self._child.kill()

    async def _running_child(self) -> Process:
        if self._child.process is not None:
            return self._child.process
        child = await self._child.start()
        answer = await self._exchange(child, orjson.dumps(self._setting) + b"\n", START_SECONDS)
        if "error" in answer:
            await self.close()
            raise _broken(str(answer["message"]))
        return child

    async def _exchange(self, child: Process, line: bytes, limit_s: float) -> dict[str, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            async with asyncio.timeout(limit_s):
                child.stdin.write(line)
                await child.stdin.drain()
                answer = await child.stdout.readline()
        except TimeoutError:
            await self.close()
            raise _broken(f"it took longer than {limit_s:g} s") from None
        except (ConnectionError, ValueError):
            await self.close()
            raise _broken("its process died") from None
        if not answer.endswith(b"\n"):
            await self.close()
            raise _broken("it used more memory or time than it may")
        found: dict[str, Any] = orjson.loads(answer)
        return found


def _broken(why: str) -> ApiError:
    return ApiError(
        500,
        f"the model's chat template failed: {why}; /v1/completions works without it",
        code="chat_template_error",
    )
