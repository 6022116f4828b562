"""Commands of the documentation, taken apart: do programs, options, targets and files exist?"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import typer.main

from support.pages import ROOT
from terrace.cli.__main__ import app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_SEPARATORS = {"|", "||", "&&", ";", "&"}
_REDIRECTIONS = {">", ">>", "<", "2>"}
_PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b")
_FOLDERS = ("charts/", "crds/", "docs/", "examples/", "operator/", "runtime_image/", "tests/")


def parts(text: str) -> Iterator[list[str]]:
    """The simple commands of a line, each as its words, without variables set before it."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    tokens = iter(lexer)
    for token in tokens:
        if token in _SEPARATORS:
            yield words
            words = []
        elif token in _REDIRECTIONS:
            next(tokens)
        elif words or not re.fullmatch(r"[A-Z_]+=.*", token):
            words.append(token)
    if words:
        yield words


@dataclass
class Checker:
    """Says what is wrong with a command; asks each program for its help once."""

    programs: Mapping[str, Path]
    """kubectl and helm."""
    _helps: dict[tuple[str, ...], str] = field(default_factory=dict)

    def problems(self, text: str) -> list[str]:
        """Nothing where every program, option, target and file exists."""
        found: list[str] = []
        for words in parts(text):
            program = words[0].rpartition("/")[2]
            check: Callable[[list[str]], list[str]] | None = {
                "make": _make,
                "terrace": _terrace,
                "kubectl": self._kubectl,
                "helm": self._helm,
                "docker": _docker,
                "python": _python,
            }.get(program)
            found += check(words[1:]) if check else []
            found += [f"{word} is not there" for word in words[1:] if _is_missing(word)]
        return found

    def _kubectl(self, words: list[str]) -> list[str]:
        return self._with_verb("kubectl", words, 1, ("options",))

    def _helm(self, words: list[str]) -> list[str]:
        depth = 2 if words[0] in ("dependency", "get", "repo", "show") else 1
        return self._with_verb("helm", words, depth, ())

    def _with_verb(
        self, program: str, words: list[str], depth: int, general: tuple[str, ...]
    ) -> list[str]:
        verb = tuple(words[:depth])
        text = self._help(program, *verb, "--help")
        if not text:
            return [f"there is no {program} {' '.join(verb)}"]
        if general:
            text += self._help(program, *general)
        options = set(re.findall(r"(?<![\w-])--?[\w][\w-]*", text))
        given = [word.partition("=")[0] for word in _options(words)]
        return [
            f"{program} {' '.join(verb)} has no {each}" for each in given if each not in options
        ]

    def _help(self, *words: str) -> str:
        if words not in self._helps:
            command = [str(self.programs[words[0]]), *words[1:]]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            unknown = "unknown command" in done.stderr or done.returncode != 0
            self._helps[words] = "" if unknown else done.stdout
        return self._helps[words]


def _options(words: list[str]) -> list[str]:
    """What follows ``--`` belongs to another program."""
    own = words[: words.index("--")] if "--" in words else words
    return [word for word in own if re.match(r"--?[A-Za-z]", word)]


def _is_missing(word: str) -> bool:
    path = word.removeprefix("@").removeprefix("./")
    if not path.startswith(_FOLDERS) or _PLACEHOLDER.search(path):
        return False
    return not (ROOT / path).exists()


def _make(words: list[str]) -> list[str]:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = [word for word in words if "=" not in word and not word.startswith("-")]
    return [f"make has no target {each}" for each in asked if each not in targets]


def _terrace(words: list[str]) -> list[str]:
    command: Any = typer.main.get_command(app)
    path = "terrace"
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in command.commands:
            return [f"{path} has no command {name}"]
        command, path = command.commands[name], f"{path} {name}"
    known = {"--help"} | {
        option for each in command.params for option in (*each.opts, *each.secondary_opts)
    }
    given = [word.partition("=")[0] for word in _options(rest)]
    return [f"{path} has no {each}" for each in given if each not in known]


def _docker(words: list[str]) -> list[str]:
    text = (ROOT / "Dockerfile").read_text()
    stages, arguments = (
        re.findall(r" AS (\w+)", text),
        re.findall(r"^ARG (\w+)", text, re.MULTILINE),
    )
    found = []
    for flag, value in pairwise(words):
        if flag == "--target" and value not in stages:
            found.append(f"the Dockerfile has no stage {value}")
        if flag == "--build-arg" and value.partition("=")[0] not in arguments:
            found.append(f"the Dockerfile has no ARG {value}")
    return found


def _python(words: list[str]) -> list[str]:
    if words[:1] != ["-m"] or _PLACEHOLDER.fullmatch(words[1]):
        return []
    return [] if importlib.util.find_spec(words[1]) else [f"there is no module {words[1]}"]
