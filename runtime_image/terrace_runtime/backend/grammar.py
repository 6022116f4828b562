"""Answers that match a JSON schema or a grammar: rejection first, a mask when it fails.

Owns: compiling grammars with llguidance (docs/adr/0014) under bounds on size, time and memory, and
the sampler that holds an answer to one. Does not own: how the next token is drawn (``chain.py``) or
the fields of a request (``api``). Next: both backends wrap their chains in a GrammarSampler.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from typing_extensions import override

from terrace_runtime.backend import DEAD_END, Grammar, GrammarError, SamplerChain
from terrace_runtime.backend.gbnf import lark_of_gbnf

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from terrace_runtime.backend import BackendInfo, TokenChooser

MAX_GRAMMAR_CHARS = 65_536
_MAX_COMPILED = 128
"""Compiled grammars kept: requests of one client mostly share theirs."""
MAX_PROPERTIES = 500
"""Optional properties of one object; each takes four items of a parser's row."""
_MAX_ITEMS = {"json_schema": 4 * MAX_PROPERTIES}
_MAX_ITEMS_ELSE = 500
"""An ambiguous grammar's row costs the square of its items: at 2,000 up to 40 ms of each step."""
_FREE_SECONDS = 1.0
_SECONDS_PER_TOKEN = 0.005
"""Processor time that a grammar may take of the engine's thread: this much, and per token."""
_JSON: Any = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,16}"}
"""A small model may write spaces for ever where a schema allows any number of them."""
_MAX_REASON = 300


class _Tokens:
    """The vocabulary as llguidance takes it."""

    bos_token_id = None

    def __init__(self, info: BackendInfo, tokenize: Callable[[str], list[int]]) -> None:
        self._tokenize = tokenize
        self.eos_token_id = min(info.eog)
        self.tokens = list(info.pieces)
        self.special_token_ids = [token for token, piece in enumerate(info.pieces) if not piece]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenize(text.decode("utf-8", "replace"))


class Grammars:
    """The grammars that requests of one model brought; thread-safe."""

    def __init__(self, info: BackendInfo, tokenize: Callable[[str], list[int]]) -> None:
        """``tokenize`` makes tokens of plain text."""
        self._info = info
        self._tokenize = tokenize
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> LLMatcher:
        """One that nobody advances; raises GrammarError with the reason."""
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar]
        # Outside of the lock, for which the engine's thread may wait.
        compiled = self._new(grammar)
        with self._lock:
            self._compiled[grammar] = compiled
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        return compiled

    def warm_up(self) -> None:
        """Read the vocabulary now: with 150,000 tokens that holds Python's lock for 0.4 s."""
        if self._info.eog:
            self._vocabulary()

    def _vocabulary(self) -> LLTokenizer:
        if self._tokenizer is None:
            tokens = TokenizerWrapper(_Tokens(self._info, self._tokenize))
            self._tokenizer = LLTokenizer(tokens, eos_token=sorted(self._info.eog))
        return self._tokenizer

    def hold(self, chain: TokenChooser, grammar: Grammar | None) -> SamplerChain:
        """``chain``, held to ``grammar`` if there is one."""
        if grammar is None:
            return chain
        return GrammarSampler(chain, self.compile(grammar).deep_copy(), self._info)

    def _new(self, grammar: Grammar) -> LLMatcher:
        if not self._info.eog:
            raise GrammarError("this model has no token that ends an answer")
        if len(grammar.text) > MAX_GRAMMAR_CHARS:
            size = f"{len(grammar.text)} characters, more than {MAX_GRAMMAR_CHARS}"
            raise GrammarError(f"it has {size}")
        text = _llguidance(grammar)
        matcher = LLMatcher(self._vocabulary(), text, log_level=0, limits=_limits(grammar))
        if matcher.is_error():
            raise GrammarError(_reason(matcher))
        return matcher


def _limits(grammar: Grammar) -> LLParserLimits:
    return LLParserLimits(
        max_items_in_row=_MAX_ITEMS.get(grammar.kind, _MAX_ITEMS_ELSE),
        step_lexer_fuel=100_000,  # about 7 ms of a step
        step_max_items=20_000,
        max_lexer_states=20_000,  # 40 MB
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _llguidance(grammar: Grammar) -> str:
    """``grammar`` in llguidance's own form."""
    try:
        match grammar.kind:
            case "json_schema":
                return LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON)
            case "regex":
                return LLMatcher.grammar_from_regex(grammar.text)
            case "choice":
                texts = [orjson.dumps(text).decode() for text in orjson.loads(grammar.text)]
                return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))
            case "gbnf":
                return LLMatcher.grammar_from_lark(lark_of_gbnf(grammar.text))
    except ValueError as error:
        raise GrammarError(str(error)[:_MAX_REASON]) from error


def _reason(matcher: LLMatcher) -> str:
    lines = [line for line in matcher.get_error().splitlines() if line.strip(" ^")]
    return " ".join(line.strip() for line in lines)[:_MAX_REASON]


class GrammarSampler(SamplerChain):
    """Draws as its chain does; a token that the grammar forbids is drawn again among the others.

    Nearly always the first draw fits, and then no mask over the vocabulary is needed (the rule of
    llama.cpp's common_sampler_sample). The end of the answer is allowed where the grammar is done.
    """

    def __init__(
        self,
        chain: TokenChooser,
        matcher: LLMatcher,
        info: BackendInfo,
        *,
        free_s: float = _FREE_SECONDS,
    ) -> None:
        """``matcher`` is this sampler's own; ``free_s`` seconds of processor time are free."""
        self._chain = chain
        self._matcher = matcher
        self._eog = info.eog
        self._vocabulary = info.vocabulary
        self._error = ""
        self._seconds_left = free_s

    @property
    @override
    def error(self) -> str:
        return self._error

    @override
    def sample(self, row: int) -> int:
        if self._error:
            return min(self._eog)
        started = time.thread_time()
        token = self._sample(row)
        self._seconds_left += _SECONDS_PER_TOKEN - (time.thread_time() - started)
        if self._seconds_left < 0 and not self._error:
            return self._fail("it takes too long")
        return token

    def _sample(self, row: int) -> int:
        token = self._chain.draw(row)
        if not self._take(token):
            allowed = self._allowed()
            if not allowed.size:
                return self._fail()
            token = self._chain.draw(row, allowed)
            if not self._take(token):
                return self._fail()
        self._chain.accept(token)
        return token

    def _take(self, token: int) -> bool:
        """Advance by ``token`` if the grammar allows it."""
        if token in self._eog:
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.try_consume_tokens([token]))

    def _allowed(self) -> NDArray[np.intp]:
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.flatnonzero(np.unpackbits(mask, count=self._vocabulary, bitorder="little"))

    def _fail(self, why: str = "") -> int:
        why = why or _reason(self._matcher) or "no token of this vocabulary can follow"
        self._error = f"{DEAD_END}: {why}"
        return min(self._eog)

    @override
    def close(self) -> None:
        self._chain.close()
