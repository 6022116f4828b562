"""GBNF means to us what it means to llama.cpp."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from support.engine_builders import runtime_config
from terrace_runtime.backend import Grammar, GrammarError
from terrace_runtime.backend.chain import _TOKEN_DATA, _Candidates
from terrace_runtime.backend.gbnf import MAX_RULES, lark_of_gbnf
from terrace_runtime.backend.llama import LlamaBackend

LETTERS = "abc"

literals = st.text(LETTERS, max_size=3).map(lambda text: f'"{text}"')
classes = st.sampled_from(["[a-b]", "[^a]", "[abc]", ".", "[a-]", r"[\x61-\u0062]"])
items = st.recursive(
    st.one_of(literals, classes, st.sampled_from(["one", "two"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "{0,2}"])).map(
            "".join
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({' '.join(parts)})"),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({' | '.join(parts)})"),
    ),
    max_leaves=5,
)


@st.composite
def grammars(draw: st.DrawFn) -> str:
    root, one = draw(items), draw(items)
    # Each recursion comes after a letter: neither parser takes left recursion of every kind.
    two = draw(st.sampled_from(['"a"', '"b" two?', '("c" two | "a")', '"a" two "b" | ""']))
    one = one.replace("one", "two")
    return f"root ::= {root} # a comment\none ::= {one}\ntwo ::= {two}\n"


@cache
def demo() -> LlamaBackend:
    backend = LlamaBackend()
    backend.load(runtime_config(threads=1))
    return backend


@cache
def letter_tokens() -> dict[str, int]:
    pieces = demo().info.pieces
    return {letter: pieces.index(letter.encode()) for letter in LETTERS}


def ours(text: str, word: str) -> list[bool]:
    """After how many letters of ``word`` the answer may end; ends where a letter is refused."""
    matcher = demo()._grammars.compile(Grammar("gbnf", text)).deep_copy()
    found = [bool(matcher.is_accepting())]
    for letter in word:
        if not matcher.try_consume_tokens([letter_tokens()[letter]]):
            break
        found.append(bool(matcher.is_accepting()))
    return found


def theirs(text: str, word: str) -> list[bool]:
    """The same by llama.cpp."""
    calls = demo()._samplers
    assert calls is not None
    lib = calls.lib
    sampler = lib.llama_sampler_init_grammar(calls.vocabulary.pointer, text.encode(), b"root")
    assume(sampler)
    try:
        found = [allows(sampler, min(demo().info.eog))]
        for letter in word:
            token = letter_tokens()[letter]
            if not allows(sampler, token):
                break
            lib.llama_sampler_accept(sampler, token)
            found.append(allows(sampler, min(demo().info.eog)))
        return found
    finally:
        lib.llama_sampler_free(sampler)


def allows(sampler: Any, token: int) -> bool:
    data = np.array([(token, 1.0, 0.0)], _TOKEN_DATA)
    array = _Candidates(data.ctypes.data, 1, -1, False)
    calls = demo()._samplers
    assert calls is not None
    calls.apply(sampler, ctypes.byref(array))
    return bool(np.isfinite(data["logit"][0]))


@settings(max_examples=150, deadline=None)
@given(grammars(), st.lists(st.text(LETTERS, max_size=7), min_size=3, max_size=6))
@example('root ::= "a" "b" | "ab" "c"\none ::= "a"\ntwo ::= "a"', ["ab", "abc", "aba"])
def test_a_random_grammar_takes_the_words_that_llama_cpp_takes(text: str, words: list[str]) -> None:
    for word in words:
        assert ours(text, word) == theirs(text, word), word


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no rule root"),
        ('foo ::= "a"', "no rule root"),
        ("root ::= foo", "no rule foo"),
        ('"a"', "does not begin with a rule"),
        ('root ::= "a', "no GBNF at"),
        ("root ::= 'a'", "no GBNF at"),
        ('root ::= ("a"', "not closed"),
        ('root ::= "a")', "has no ("),
        ("root ::= *", "nothing that"),
        ('root ::= "a"{3,2}', "ends before it begins"),
        ('root ::= "a"{0,2001}', "more than 2000"),
        ('root ::= "\\q"', "no escape"),
        ("root ::= [b-a]", "ends before it begins"),
        ("root ::= []", "no character"),
        ('root ::= "\\ud800"', "no character"),
        ('root ::= "a"\nroot ::= "b"', "twice"),
        ("".join(f'r{n} ::= "a"\n' for n in range(MAX_RULES + 1)), "more than 512 rules"),
    ],
)
def test_what_is_no_grammar_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("(", r"\(")):
        lark_of_gbnf(text)


@given(st.text('ro t:=abc"[]()|*+?{}0129,.\\-^#\n', max_size=80))
def test_noise_is_refused_or_compiled_and_nothing_else(text: str) -> None:
    with contextlib.suppress(GrammarError):
        demo()._grammars.compile(Grammar("gbnf", "root ::= " + text))
