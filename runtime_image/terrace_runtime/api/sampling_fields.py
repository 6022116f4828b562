"""The fields of a request that say how tokens are chosen, bounded; docs/sampling.md lists them.

Owns: their names (OpenAI's, llama-server's and vLLM's), bounds, and the step to SamplingParams.
Does not own: what they do (``backend.chain``, ``backend.grammar``), or the rest of a body
(``schemas``).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import orjson
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from terrace_runtime.api.errors import ApiError
from terrace_runtime.backend import MAX_WINDOW, Grammar
from terrace_runtime.engine.request import SamplingParams
from terrace_runtime.engine.sampling import (
    MAX_BIAS,
    MAX_BIASES,
    MAX_BREAKER_BYTES,
    MAX_BREAKERS,
)

if TYPE_CHECKING:
    from terrace_runtime.contract import RuntimeConfig

SEEDS: Final = 2**32 - 1
"""Seeds of the engine; the number itself stands for "draw one" in llama.cpp."""
MAX_CHOICE_TEXTS: Final = 1024
_ANY_OBJECT: Final = '{"type":"object"}'

Window = Annotated[int, Field(ge=-1, le=MAX_WINDOW)]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Breaker = Annotated[str, Field(min_length=1, max_length=MAX_BREAKER_BYTES)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=4096)]],
    Field(min_length=1, max_length=MAX_CHOICE_TEXTS, fail_fast=True),
]
Schema = dict[str, Any]


class JsonSchemaFormat(BaseModel):
    """``response_format.json_schema``; the schema holds whether ``strict`` is set or not."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(max_length=256)
    json_schema: Schema = Field(alias="schema")


class ResponseFormat(BaseModel):
    """``response_format``."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    inline: Schema | None = Field(default=None, alias="schema")
    """llama-server's place for the schema of a ``json_object``."""


class StructuredOutputs(BaseModel):
    """``structured_outputs``, vLLM's; exactly one of its fields."""

    model_config = ConfigDict(extra="forbid")

    json_value: Schema | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None


class SamplingFields(BaseModel):
    """Everything about the choice of tokens; None: the model's default."""

    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, gt=0, le=1)
    repeat_penalty: float | None = Field(
        default=None,
        ge=0.1,
        le=10,
        validation_alias=AliasChoices("repeat_penalty", "repetition_penalty"),
    )
    repeat_last_n: Window | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    dry_multiplier: float | None = Field(default=None, ge=0, le=100)
    dry_base: float | None = Field(default=None, ge=1, le=100)
    dry_allowed_length: int | None = Field(default=None, ge=0, le=MAX_WINDOW)
    dry_penalty_last_n: Window | None = None
    dry_sequence_breakers: (
        Annotated[list[Breaker], Field(max_length=MAX_BREAKERS, fail_fast=True)] | None
    ) = None
    xtc_probability: float | None = Field(default=None, ge=0, le=1)
    xtc_threshold: float | None = Field(default=None, ge=0, le=1)
    logit_bias: dict[TokenKey, Bias] | None = Field(default=None, max_length=MAX_BIASES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    json_object_schema: Schema | None = Field(default=None, validation_alias="json_schema")
    grammar: str | None = None
    guided_json: Schema | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None

    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Alternatives to show for each token; None: no log probabilities at all."""

    def sampling(self, config: RuntimeConfig) -> SamplingParams:
        """The request's own values, and the model's defaults where it has none."""
        default = config.sampling.model_dump()
        given = {name: getattr(self, name) for name in _NAMES}
        values = default | {name: value for name, value in given.items() if value is not None}
        values["top_k"] = max(values["top_k"], 0)
        if self.dry_sequence_breakers is not None:
            values["dry_sequence_breakers"] = tuple(self.dry_sequence_breakers)
        return SamplingParams(
            **values,
            seed=None if self.seed is None else self.seed % SEEDS,
            ignore_eos=bool(self.ignore_eos),
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            logprobs=self.num_logprobs(),
            grammar=self._grammar(),
        )

    def _grammar(self) -> Grammar | None:
        """What the answer must match; raises ApiError for two of them."""
        found = [*self._formats(), *self._grammars(), *self._structured()]
        if len(found) > 1:
            names = " and ".join(dict.fromkeys(one.field for one in found))
            raise ApiError(400, f"{names}: only one can be asked for", param=found[1].field)
        return found[0] if found else None

    def _formats(self) -> list[Grammar]:
        wanted, name = self.response_format, "response_format"
        if wanted is None or wanted.type == "text":
            return []
        if wanted.type == "json_object":
            return [_schema(wanted.inline, name)]
        if wanted.json_schema is None:
            where = f"{name}.json_schema"
            raise ApiError(400, f"{where} is missing", param=where)
        return [_schema(wanted.json_schema.json_schema, name)]

    def _grammars(self) -> list[Grammar]:
        found = []
        for name, schema in (
            ("json_schema", self.json_object_schema),
            ("guided_json", self.guided_json),
        ):
            if schema is not None:
                found.append(_schema(schema, name))
        for name, text in (("grammar", self.grammar), ("guided_grammar", self.guided_grammar)):
            if text:
                found.append(Grammar("gbnf", text, name))
        if self.guided_regex:
            found.append(Grammar("regex", self.guided_regex, "guided_regex"))
        if self.guided_choice:
            found.append(_choice(self.guided_choice, "guided_choice"))
        return found

    def _structured(self) -> list[Grammar]:
        wanted, name = self.structured_outputs, "structured_outputs"
        if wanted is None:
            return []
        found = []
        if wanted.json_value is not None:
            found.append(_schema(wanted.json_value, name))
        if wanted.json_object:
            found.append(_schema(None, name))
        if wanted.regex is not None:
            found.append(Grammar("regex", wanted.regex, name))
        if wanted.grammar is not None:
            found.append(Grammar("gbnf", wanted.grammar, name))
        if wanted.choice is not None:
            found.append(_choice(wanted.choice, name))
        if not found:
            raise ApiError(400, f"{name} asks for nothing", param=name)
        return found


_NAMES: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "xtc_probability",
    "xtc_threshold",
)
"""Fields that go to SamplingParams under their own names as they are."""


def _schema(schema: Schema | str | None, name: str) -> Grammar:
    """``schema`` as an object or, as vLLM's clients may send it, as text; None: any object."""
    if schema is None:
        return Grammar("json_schema", _ANY_OBJECT, name)
    if isinstance(schema, str):
        return Grammar("json_schema", schema, name)
    try:
        return Grammar("json_schema", orjson.dumps(schema).decode(), name)
    except (orjson.JSONEncodeError, ValueError) as error:
        raise ApiError(400, f"{name}: the schema cannot be used: {error}", param=name) from error


def _choice(texts: list[str], name: str) -> Grammar:
    return Grammar("choice", orjson.dumps(texts).decode(), name)
