"""Answers drawn at random under a grammar match it; hostile grammars cost bounded time."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.engine_builders import runtime_config
from terrace_runtime.backend import Grammar, GrammarError, SamplerChain, TokenChooser
from terrace_runtime.backend.fake import EOS, FakeBackend
from terrace_runtime.backend.grammar import Grammars, GrammarSampler

SECONDS = 5.0
"""Far more than anything here takes: what explodes takes minutes or all memory."""
scalars = st.one_of(
    st.fixed_dictionaries({"type": st.just("string"), "maxLength": st.integers(0, 5)}),
    st.tuples(st.integers(-50, 50), st.integers(0, 99)).map(
        lambda ends: {"type": "integer", "minimum": ends[0], "maximum": ends[0] + ends[1]}
    ),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(st.one_of(st.text(max_size=4), st.integers(-9, 9), st.none()), min_size=1).map(
        lambda values: {"enum": values}
    ),
    st.just({"type": "string", "pattern": "^[a-f]{2,4}$"}),
)


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.text('abcé"\\', max_size=4), inner, max_size=4).flatmap(
        lambda fields: st.lists(st.sampled_from([*fields, ""]), unique=True).map(
            lambda required: {
                "type": "object",
                "properties": fields,
                "required": [name for name in required if name in fields],
                "additionalProperties": False,
            }
        )
    )


schemas: st.SearchStrategy[dict[str, Any]] = st.recursive(
    scalars,
    lambda inner: st.one_of(
        objects(inner),
        st.tuples(inner, st.integers(0, 3)).map(
            lambda pair: {"type": "array", "items": pair[0], "maxItems": pair[1]}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
    ),
    max_leaves=6,
)


class AtRandom(TokenChooser):
    """Any token with equal chance; the end of the answer as soon as it may be."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        self._chance = random.Random(seed)
        self._vocabulary = vocabulary

    def draw(self, row: int, allowed: Any = None) -> int:
        assert row == 0
        if allowed is None:
            return self._chance.randrange(self._vocabulary)
        return EOS if EOS in allowed else int(self._chance.choice(allowed.tolist()))

    def sample(self, row: int) -> int:
        return self.draw(row)

    def accept(self, token: int) -> None:
        """Nothing counts."""

    def close(self) -> None:
        """Nothing to free."""


@cache
def backend() -> FakeBackend:
    found = FakeBackend()
    found.load(runtime_config())
    return found


def answer(sampler: SamplerChain, limit: int = 3000) -> str:
    """The text up to the end of generation."""
    found = b""
    for _ in range(limit):
        token = sampler.sample(0)
        assert not sampler.error
        if token in backend().info.eog:
            return found.decode()
        found += backend().info.pieces[token]
    raise AssertionError("the answer has no end")


KINDS: dict[str, Any] = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}


def matches(value: Any, schema: dict[str, Any]) -> bool:  # noqa: PLR0911 - one for each kind
    """Whether ``value`` is what the schemas of this file describe."""
    if "anyOf" in schema:
        return any(matches(value, part) for part in schema["anyOf"])
    if "enum" in schema:
        return any(value == one and type(value) is type(one) for one in schema["enum"])
    kind = schema["type"]
    if type(value) is not KINDS[kind]:
        return False
    if kind == "string" and "pattern" in schema:
        return 2 <= len(value) <= 4 and set(value) <= set("abcdef")
    if kind == "integer":
        return bool(schema["minimum"] <= value <= schema["maximum"])
    if kind == "array":
        items = schema["items"]
        return len(value) <= schema["maxItems"] and all(matches(item, items) for item in value)
    if kind == "object":
        fields = schema["properties"]
        names = set(schema["required"]) <= set(value) <= set(fields)
        return names and all(matches(item, fields[name]) for name, item in value.items())
    return kind != "string" or bool(len(value) <= schema["maxLength"])


@settings(max_examples=60, deadline=None)
@given(schemas, st.integers(0, 2**32))
@example({"type": "object", "properties": {}, "required": [], "additionalProperties": False}, 0)
def test_a_random_answer_to_a_random_schema_is_valid(schema: dict[str, Any], seed: int) -> None:
    chain = AtRandom(seed, backend().info.vocabulary)
    found = answer(backend()._grammars.hold(chain, Grammar("json_schema", json.dumps(schema))))
    value = json.loads(found)
    assert matches(value, schema), (schema, value)


def test_the_end_is_drawn_only_where_the_grammar_is_done() -> None:
    class Impatient(AtRandom):
        def draw(self, row: int, allowed: Any = None) -> int:
            return EOS if allowed is None else super().draw(row, allowed)

    chain = Impatient(1, backend().info.vocabulary)
    found = answer(backend()._grammars.hold(chain, Grammar("gbnf", 'root ::= "ab" "c"{3}')))
    assert found == "abccc"


STARS = " ".join(['("a"*)'] * 300)
REF = "#/$defs"
HOSTILE: dict[str, Grammar] = {
    "doubling": Grammar("gbnf", 'root ::= s\ns ::= "a" s s | "a"'),
    "ambiguous": Grammar("gbnf", f'root ::= {STARS} "b"'),
    "optional": Grammar("gbnf", 'root ::= ("a"?){2000} "b"'),
    "nested repeats": Grammar("gbnf", 'root ::= (((("a"{0,999}){0,999}){0,999}){0,999})'),
    "left recursion": Grammar("gbnf", 'root ::= root root | root "a" | "a" | ""'),
    "hidden recursion": Grammar("gbnf", 'root ::= x\nx ::= y x "a" | "a"\ny ::= "b"?'),
    "parentheses": Grammar("gbnf", "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "wide class": Grammar("gbnf", "root ::= [" + "ab" * 30_000 + "]+"),
    "chained rules": Grammar(
        "gbnf",
        "root ::= r0\n"
        + "".join(f"r{n} ::= r{n + 1} | r{n + 1}\n" for n in range(500))
        + 'r500 ::= "a"',
    ),
    "deep schema": Grammar("json_schema", '{"items":' * 7000 + "{}" + "}" * 7000),
    "shared schema": Grammar(
        "json_schema",
        json.dumps(
            {
                "$ref": f"{REF}/a0",
                "$defs": {
                    **{
                        f"a{n}": {"prefixItems": [{"$ref": f"{REF}/a{n + 1}"}] * 10, "minItems": 10}
                        for n in range(30)
                    },
                    "a30": {"type": "null"},
                },
            }
        ),
    ),
    "own reference": Grammar("json_schema", json.dumps({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]})),
    "crossed": Grammar(
        "json_schema",
        json.dumps(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"x{i}{j}": {"type": "null"}}} for j in range(8)]}
                    for i in range(12)
                ]
            }
        ),
    ),
    "many properties": Grammar(
        "json_schema",
        json.dumps({"properties": {f"p{n}": {"type": "string"} for n in range(1500)}}),
    ),
    "long text": Grammar("json_schema", '{"type": "string", "minLength": 100000000}'),
    "nested pattern": Grammar("regex", "((a{1,200}){1,200}){1,200}"),
    "backtracking": Grammar("regex", "(a|aa|a*)*.{300}b"),
    "many states": Grammar("regex", "(.*a.{20}){3}"),
    "deep pattern": Grammar("regex", "(" * 20_000 + "a" + ")" * 20_000),
    "choices": Grammar("choice", json.dumps([f"{'a' * (n % 50)}{n}" for n in range(1024)])),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_or_followed_in_bounded_time(name: str) -> None:
    started = time.thread_time()
    letters = {chr(code): code for code in range(32, 127)}
    try:
        matcher = backend()._grammars.compile(HOSTILE[name]).deep_copy()
    except GrammarError:
        pass
    else:
        for letter in '["' + "a" * 200:
            matcher.compute_bitmask()
            matcher.try_consume_tokens([letters[letter]])
    assert time.thread_time() - started < SECONDS


def test_a_model_without_an_end_takes_no_grammar() -> None:
    info = replace(backend().info, eog=frozenset())
    with pytest.raises(GrammarError, match="no token that ends"):
        Grammars(info, lambda _: []).compile(Grammar("regex", "a"))


def test_a_draw_that_fits_needs_no_mask() -> None:
    class Counting(AtRandom):
        masked = 0

        def draw(self, row: int, allowed: Any = None) -> int:
            self.masked += allowed is not None
            return ord("a") if allowed is None else super().draw(row, allowed)

    chain = Counting(0, backend().info.vocabulary)
    sampler = backend()._grammars.hold(chain, Grammar("regex", "a{5}b"))
    assert isinstance(sampler, GrammarSampler)
    assert [sampler.sample(0) for _ in range(7)] == [*b"aaaaab", EOS]
    assert chain.masked == 2


def test_a_grammar_that_takes_too_much_of_the_engine_s_time_ends_its_request() -> None:
    class Slow(AtRandom):
        def draw(self, row: int, allowed: Any = None) -> int:
            end = time.thread_time() + 0.06
            while time.thread_time() < end:
                pass
            return ord("a")

    chain = Slow(0, backend().info.vocabulary)
    matcher = backend()._grammars.compile(Grammar("regex", "a*")).deep_copy()
    sampler = GrammarSampler(chain, matcher, backend().info, free_s=0.4)
    assert sampler.sample(0) == ord("a")
    assert not sampler.error
    tokens = [sampler.sample(0) for _ in range(9)]
    assert "too long" in sampler.error
    assert tokens[-1] in backend().info.eog
