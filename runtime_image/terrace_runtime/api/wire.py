"""What answers look like in OpenAI's JSON, whole and in events.

Owns: the documents and chunks of both endpoints. Does not own: sending (``answer``). The parts of
an event that do not change are encoded once; per output only its text is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import orjson

from terrace_runtime.api.logprobs import (
    Withheld,
    chat_logprobs,
    completion_logprobs,
)
from terrace_runtime.engine.request import FinishReason

if TYPE_CHECKING:
    from terrace_runtime.api.generation import Generation
    from terrace_runtime.api.logprobs import Placed
    from terrace_runtime.engine.request import RequestOutput

_FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


class Wire(ABC):
    """One answer in the making."""

    document_kind: str
    chunk_kind: str

    def __init__(
        self,
        answer_id: str,
        created: int,
        model: str,
        fingerprint: str,
        *,
        wants_usage: bool,
        wants_logprobs: bool = False,
    ) -> None:
        self._shared: dict[str, Any] = {
            "id": answer_id,
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._wants_usage = wants_usage
        self._wants_logprobs = wants_logprobs
        self._withheld: dict[int, Withheld] = {}
        self._logprobs: dict[int, list[Placed]] = {}
        self._texts: dict[int, list[str]] = {}
        self._finish: dict[int, str] = {}
        self._begun: set[int] = set()
        shared = orjson.dumps({"object": self.chunk_kind, **self._shared})[:-1]
        self._head = b"data: " + shared + b',"choices":[{"index":'
        self._tail = b'}],"usage":null}\n\n' if wants_usage else b"}]}\n\n"

    def collect(self, index: int, output: RequestOutput) -> None:
        """Keep an output for the document."""
        self._texts.setdefault(index, []).append(output.text)
        if self._wants_logprobs:
            self._logprobs.setdefault(index, []).extend(self._released(index, output))
        if output.finish is not None:
            self._finish[index] = _FINISH[output.finish]

    def document(self, generation: Generation) -> bytes:
        """The whole answer."""
        choices = [
            self._choice(index, "".join(texts), self._finish[index], self._collected(index))
            for index, texts in sorted(self._texts.items())
        ]
        return orjson.dumps(
            {
                "object": self.document_kind,
                **self._shared,
                "choices": choices,
                "usage": _usage(generation),
            }
        )

    def event(self, index: int, output: RequestOutput) -> bytes:
        """The events of one output; empty when it brings neither text nor an end."""
        event = b""
        if index not in self._begun:
            self._begun.add(index)
            event = self._first(index)
        if output.text:
            logprobs = self._chunk_logprobs(index, output)
            event += self._chunk(index, self._piece(orjson.dumps(output.text)), b"null", logprobs)
        elif output.logprobs:
            self._released(index, output)
        if output.finish is not None:
            finish = orjson.dumps(_FINISH[output.finish])
            event += self._chunk(index, self._piece(b""), finish)
        return event

    def last_event(self, generation: Generation) -> bytes:
        """The usage chunk when it is wanted."""
        if not self._wants_usage:
            return b""
        body = {"object": self.chunk_kind, **self._shared, "choices": []}
        return b"data: " + orjson.dumps({**body, "usage": _usage(generation)}) + b"\n\n"

    def _chunk(self, index: int, piece: bytes, finish: bytes, logprobs: bytes = b"null") -> bytes:
        number = b"%d," % index
        end = b',"logprobs":' + logprobs + b',"finish_reason":' + finish + self._tail
        return self._head + number + piece + end

    def _released(self, index: int, output: RequestOutput) -> list[Placed]:
        withheld = self._withheld.setdefault(index, Withheld())
        return withheld.release(output.text, output.logprobs)

    def _chunk_logprobs(self, index: int, output: RequestOutput) -> bytes:
        if not self._wants_logprobs:
            return b"null"
        return orjson.dumps(self._written(self._released(index, output)))

    def _collected(self, index: int) -> dict[str, Any] | None:
        return self._written(self._logprobs[index]) if self._wants_logprobs else None

    @abstractmethod
    def _written(self, entries: list[Placed]) -> dict[str, Any]:
        """A choice's logprobs."""

    @abstractmethod
    def _first(self, index: int) -> bytes:
        """What comes before the first text."""

    @abstractmethod
    def _piece(self, text: bytes) -> bytes:
        """The field that holds ``text`` (JSON, or empty at the end)."""

    @abstractmethod
    def _choice(
        self, index: int, text: str, finish: str, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        """One whole choice."""


class ChatWire(Wire):
    """``/v1/chat/completions``."""

    document_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def _first(self, index: int) -> bytes:
        return self._chunk(index, b'"delta":{"role":"assistant","content":""}', b"null")

    def _piece(self, text: bytes) -> bytes:
        return b'"delta":{"content":' + text + b"}" if text else b'"delta":{}'

    def _written(self, entries: list[Placed]) -> dict[str, Any]:
        return chat_logprobs(entries)

    def _choice(
        self, index: int, text: str, finish: str, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


class CompletionWire(Wire):
    """``/v1/completions``."""

    document_kind = "text_completion"
    chunk_kind = "text_completion"

    def _first(self, _: int) -> bytes:
        return b""

    def _piece(self, text: bytes) -> bytes:
        return b'"text":' + (text or b'""')

    def _written(self, entries: list[Placed]) -> dict[str, Any]:
        return completion_logprobs(entries)

    def _choice(
        self, index: int, text: str, finish: str, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _usage(generation: Generation) -> dict[str, Any]:
    prompt, generated = generation.num_prompt_tokens, generation.num_generated_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": generation.num_cached_tokens},
    }
