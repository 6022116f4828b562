"""From GBNF, llama.cpp's notation of grammars, to the notation that llguidance reads.

Owns: reading GBNF, refusing what is not, and writing each rule again. Pure, linear in the text's
length, no recursion. Does not own: limits on what a grammar costs (``grammar.py``). Literals become
single characters: llguidance prefers the longest terminal, GBNF has only characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MAX_RULES = 512
MAX_REPEATS = 2000
"""As in llama.cpp."""
_TOKEN = re.compile(
    r"""
    (?P<space>(?:[\s]|\#[^\n]*)+)
  | (?P<define>(?P<defined>[A-Za-z0-9-]+)(?:[ \t]|\#[^\n]*\n)*::=)
  | (?P<name>[A-Za-z0-9-]+)
  | "(?P<literal>(?:[^"\\]|\\.)*)"
  | \[(?P<not>\^?)(?P<set>(?:[^\]\\]|\\.)*)\]
  | (?P<any>\.)
  | (?P<open>\()
  | (?P<close>\))
  | (?P<or>\|)
  | (?P<repeat>[*+?]|\{\s*(?P<low>\d{1,9})\s*(?P<comma>,?)\s*(?P<high>\d{0,9})\s*\})
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(
    r"\\(?:x(?P<x>[0-9A-Fa-f]{2})|u(?P<u>[0-9A-Fa-f]{4})|U(?P<U>[0-9A-Fa-f]{8})"
    r"|(?P<one>[trn\\\"\[\]-]))|(?P<plain>[^\\])",
    re.DOTALL,
)
_CONTROLS = {"t": "\t", "r": "\r", "n": "\n"}
_ANY = r"/[\x{0}-\x{10FFFF}]/"
_SHOWN = 20


def lark_of_gbnf(text: str) -> str:
    """The grammar in llguidance's notation; raises ValueError with the reason and the place."""
    rules = _Rules()
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"it is no GBNF at {text[place : place + _SHOWN]!r}")
        _read(rules, match)
        place = match.end()
    return rules.written()


@dataclass
class _Rule:
    """One rule in the making: what is written, and where its last item and its groups begin."""

    parts: list[str] = field(default_factory=list)
    item: int | None = None
    """Index of the first part of the last item; None: there is none to repeat."""
    is_repeated: bool = False
    groups: list[int] = field(default_factory=list)

    def add(self, part: str) -> None:
        """Write an item."""
        self.item, self.is_repeated = len(self.parts), False
        self.parts.append(part)

    def mark(self, part: str) -> None:
        """Write what is no item."""
        self.item = None
        self.parts.append(part)

    def close(self) -> None:
        """End a group, which is an item as a whole."""
        if not self.groups:
            raise ValueError("a ) has no (")
        self.parts.append(")")
        self.item, self.is_repeated = self.groups.pop(), False

    def repeat(self, how: str) -> None:
        """Repeat the last item; one that is repeated already becomes a group."""
        if self.item is None:
            raise ValueError(f"there is nothing that {how} could repeat")
        if self.is_repeated:
            self.parts[self.item] = "(" + self.parts[self.item]
            self.parts.append(")")
        self.parts.append(how)
        self.is_repeated = True


class _Rules:
    """All rules by name; ``root`` is the first in the other notation's sense too."""

    def __init__(self) -> None:
        self._rules: dict[str, _Rule] = {}
        self._used: set[str] = {"root"}
        self._last: _Rule | None = None

    @property
    def last(self) -> _Rule:
        if self._last is None:
            raise ValueError("it does not begin with a rule, such as: root ::= ...")
        return self._last

    def define(self, name: str) -> None:
        self._check_closed()
        if name in self._rules:
            raise ValueError(f"the rule {name} is there twice")
        if len(self._rules) >= MAX_RULES:
            raise ValueError(f"it has more than {MAX_RULES} rules")
        self._last = self._rules[name] = _Rule()

    def use(self, name: str) -> None:
        self._used.add(name)
        self.last.add(_lark_name(name))

    def _check_closed(self) -> None:
        if self._last is not None and self._last.groups:
            raise ValueError("a ( is not closed")

    def written(self) -> str:
        self._check_closed()
        missing = sorted(self._used - self._rules.keys())
        if missing:
            raise ValueError(f"there is no rule {missing[0]}")
        return "\n".join(
            f"{_lark_name(name)}: " + " ".join(rule.parts) for name, rule in self._rules.items()
        )


def _lark_name(name: str) -> str:
    """A rule's name there: lower-case, one for one."""
    if name == "root":
        return "start"
    return "r_" + "".join(_LETTERS.get(letter, letter) for letter in name)


_LETTERS = {"-": "_m", **{chr(code): "_" + chr(code + 32) + "_" for code in range(65, 91)}}


def _read(rules: _Rules, match: re.Match[str]) -> None:
    kind = match.lastgroup if match.lastgroup != "define" else "defined"
    found = match.group
    if found("define"):
        rules.define(found("defined"))
    elif found("name"):
        rules.use(found("name"))
    elif found("literal") is not None:
        rules.last.add(_literal(found("literal")))
    elif found("set") is not None:
        rules.last.add(_set(found("set"), found("not")))
    elif found("any"):
        rules.last.add(_ANY)
    elif found("open"):
        rules.last.groups.append(len(rules.last.parts))
        rules.last.mark("(")
    elif found("close"):
        rules.last.close()
    elif found("or"):
        rules.last.mark("|")
    elif found("repeat"):
        rules.last.repeat(_repeat(match))
    else:
        assert kind == "space"


def _repeat(match: re.Match[str]) -> str:
    if match.group("low") is None:
        return str(match.group("repeat"))
    low = int(match.group("low"))
    high = match.group("high")
    if high and not match.group("comma"):
        raise ValueError(f"{match.group('repeat')} is no count")
    if low > MAX_REPEATS or (high and int(high) > MAX_REPEATS):
        raise ValueError(f"{match.group('repeat')} repeats more than {MAX_REPEATS} times")
    if high and int(high) < low:
        raise ValueError(f"{match.group('repeat')} ends before it begins")
    if not match.group("comma"):
        return f"{{{low},{low}}}"
    return f"{{{low},{high}}}"


def _characters(text: str) -> list[tuple[int, bool]]:
    """(code point, whether it was escaped) of each character."""
    found = []
    place = 0
    while place < len(text):
        match = _ESCAPE.match(text, place)
        if match is None:
            raise ValueError(f"{text[place : place + 2]!r} is no escape of GBNF")
        place = match.end()
        code = match.group("x") or match.group("u") or match.group("U")
        if code:
            point = int(code, 16)
        else:
            one = match.group("one")
            point = ord(_CONTROLS.get(one, one) if one else match.group("plain"))
        if point > 0x10FFFF or 0xD800 <= point <= 0xDFFF:  # noqa: PLR2004 - what Unicode has
            raise ValueError(f"{text[match.start() : place]} is no character")
        found.append((point, not match.group("plain")))
    return found


def _literal(text: str) -> str:
    characters = _characters(text)
    if not characters:
        return '""'
    written = [f"/[{_code(point)}]/" for point, _ in characters]
    return written[0] if len(written) == 1 else "(" + " ".join(written) + ")"


def _set(text: str, negation: str) -> str:
    characters = _characters(text)
    if not characters:
        raise ValueError("a [] holds no character")
    written = []
    place = 0
    while place < len(characters):
        low = characters[place][0]
        is_range = place + 2 < len(characters) and characters[place + 1] == (ord("-"), False)
        high = characters[place + 2][0] if is_range else low
        if high < low:
            raise ValueError(f"the range {chr(low)}-{chr(high)} ends before it begins")
        written.append(_code(low) + ("-" + _code(high) if is_range else ""))
        place += 3 if is_range else 1
    return f"/[{negation}{''.join(written)}]/"


def _code(point: int) -> str:
    return f"\\x{{{point:X}}}"
