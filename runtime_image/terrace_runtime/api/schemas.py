"""OpenAI's request bodies as far as they are supported, every count and size bounded.

Owns: parsing, limits, and refusing what is known and not supported, by name. Does not own: what a
request does (``routes_*``). Unknown harmless fields are ignored, as OpenAI's clients expect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import override

from terrace_runtime.api.content_parts import Conversation, Message, conversation
from terrace_runtime.api.errors import ApiError
from terrace_runtime.api.sampling_fields import SamplingFields
from terrace_runtime.engine.sampling import MAX_LOGPROBS

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_CHOICES: Final = 8
MAX_PROMPTS: Final = 16
MAX_MESSAGES: Final = 4096
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_TOKENS: Final = 16_777_216
MAX_COMPLETION_LOGPROBS: Final = 5
MAX_CONTAINERS: Final = 262_144
"""Objects and arrays in one body: their memory is far more than their text."""

_REFUSED_ALWAYS: Final = {
    "chat_template": "the model's own template is used",
    "chat_template_kwargs": "the model's own template is used",
}
_UNSUPPORTED: Final[dict[str, tuple[object, ...]]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "use_beam_search": (None, False),
    "continue_final_message": (None, False),
    "stop_token_ids": (None, []),
    "min_tokens": (None, 0),
    "prompt_logprobs": (None, 0),
}
"""Known fields that would change the answer, and the values of each that change nothing."""

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Count = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
"""fail_fast: a million wrong items must not make a million errors."""


class StreamOptions(BaseModel):
    """How a stream is reported."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


class _Body(SamplingFields):
    """What chat and completions have in common."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=256)
    max_tokens: Count | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    timeout: float | None = Field(default=None, gt=0, le=86_400)
    pin_prompt: bool | None = None
    """Keep the prompt's KV blocks in host memory, as far as the server allows."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, in whichever form they came."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatBody(_Body):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @override
    def num_logprobs(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        return None

    def conversation(self) -> Conversation:
        """The messages and their images; raises ApiError for unsupported ones."""
        return conversation(self.messages)


class CompletionBody(_Body):
    """``POST /v1/completions``."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOGPROBS)] | Literal[False] | None = None

    @override
    def num_logprobs(self) -> int | None:
        return None if self.logprobs is False else self.logprobs

    def prompts(self) -> list[str | tuple[int, ...]]:
        """Each prompt on its own, as text or as token ids."""
        return each_text(self.prompt)


def each_text(
    value: str | list[str] | list[int] | list[list[int]],
) -> list[str | tuple[int, ...]]:
    """Each text or list of token ids of a field that may hold one or many of either."""
    if isinstance(value, str):
        return [value]
    found: list[str | tuple[int, ...]] = []
    for item in value:
        if isinstance(item, int):
            return [tuple(cast("list[int]", value))]
        found.append(item if isinstance(item, str) else tuple(item))
    return found


Body = TypeVar("Body", bound=BaseModel)


def parse(kind: type[Body], raw: bytes) -> Body:
    """The body as ``kind``; raises ApiError that names the field at fault."""
    if raw.count(b"{") + raw.count(b"[") > MAX_CONTAINERS:
        raise ApiError(400, f"the body holds more than {MAX_CONTAINERS} objects and arrays")
    try:
        body = kind.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise _bad_field(error) from None
    extra = body.model_extra or {}
    for name, why in _REFUSED_ALWAYS.items():
        if extra.get(name) is not None:
            raise ApiError(400, f"{name} is not accepted: {why}", param=name)
    for name, harmless in _UNSUPPORTED.items():
        if name in extra and not _is_one_of(extra[name], harmless):
            raise ApiError(
                400, f"{name} is not supported yet", param=name, code="unsupported_parameter"
            )
    return body


def _is_one_of(value: object, harmless: tuple[object, ...]) -> bool:
    # 0 == False in Python and not in JSON.
    return any(value == item and type(value) is type(item) for item in harmless)


def _bad_field(error: ValidationError) -> ApiError:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    same_field = [item for item in found if item["loc"][:1] == found[0]["loc"][:1]]
    first = max(same_field, key=_progress)
    param = "".join(_place(first["loc"])).removeprefix(".")
    what = f"{param}: {first['msg']}" if param else f"the body is not valid: {first['msg']}"
    return ApiError(400, what, param=param or None)


def _progress(error: ErrorDetails) -> tuple[bool, int, list[int]]:
    """Each branch of a union has its own error: the one that got furthest is what was meant.

    A value of the branch's own kind got further than one of another, however deep that was found.
    """
    loc = error["loc"]
    is_of_its_kind = error["type"] not in _OTHER_KINDS
    return is_of_its_kind, len(_place(loc)), [part for part in loc if isinstance(part, int)]


def _place(loc: tuple[int | str, ...]) -> list[str]:
    """Where an error is, without pydantic's names for the branches of a union."""
    return [
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in loc
        if isinstance(part, int) or not (part in _TAGS or "[" in part)
    ]


_CONSTRAINED: Final = frozenset({"constrained-str", "constrained-int", "constrained-float"})
_TAGS: Final = frozenset({"str", "int", "float", "bool", "none"}) | _CONSTRAINED
_OTHER_KINDS: Final = frozenset(
    {"string_type", "int_type", "float_type", "bool_type", "list_type", "dict_type", "model_type"}
    | {"int_from_float", "literal_error", "none_required"}
)
"""Errors that say that a value is not what a branch is about at all."""
