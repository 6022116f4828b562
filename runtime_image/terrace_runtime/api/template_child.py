"""The process that renders the model's chat template: untrusted code, so it lives alone.

Owns: compiling once, rendering per line of JSON on stdin, bounds on memory, processor time and
output. Does not own: the wall clock, which only the parent can hold (``chat_template``). The
environment is the one of Hugging Face transformers: sandboxed, trimmed blocks, loop controls,
``raise_exception``, ``strftime_now``, ``tojson`` without HTML escapes, ``{% generation %}``.

Most templates take a message's content as one text, some only as a list of parts: which of them
this one is, a trial tells.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from terrace_runtime.api.child_limits import grant_time, limit

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes
    from jinja2.parser import Parser

ADDRESS_BYTES: Final = 768 * 2**20
RENDER_CPU_SECONDS: Final = 10
MAX_OUTPUT_CHARS: Final = 8 * 2**20
_TRIAL: Final = "terrace7351"


class _Generation(Extension):
    """``{% generation %}`` marks what a model says, for training; rendering passes it through."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def main() -> None:
    """Serve one parent until it closes our stdin."""
    limit(resource.RLIMIT_AS, ADDRESS_BYTES)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_CORE, 0)
    setting = json.loads(sys.stdin.readline())
    template: jinja2.Template | None = None
    wants_parts = False
    grant_time(RENDER_CPU_SECONDS)
    try:
        template = _environment().from_string(setting["template"])
        wants_parts = _wants_parts(template, setting)
        _answer({"ok": True})
    except Exception as error:  # noqa: BLE001 - a template can raise anything
        _answer({"error": "broken", "message": _describe(error)})
    for line in sys.stdin:
        grant_time(RENDER_CPU_SECONDS)
        turns = json.loads(line)
        messages = [{"role": role, "content": _content(it, wants_parts)} for role, it in turns]
        _answer(_render(template, setting, messages))


def _content(pieces: list[str], wants_parts: bool) -> str | list[dict[str, str]]:  # noqa: FBT001 - the only setting
    """A message's pieces as the template wants them; marks of images are text, as in llama.cpp."""
    if wants_parts:
        return [{"type": "text", "text": piece} for piece in pieces]
    return "".join(pieces)


def _wants_parts(template: jinja2.Template, setting: dict[str, Any]) -> bool:
    """A text gets lost as one, and is there as a part."""
    shown = []
    for wants_parts in (False, True):
        messages = [{"role": "user", "content": _content([_TRIAL], wants_parts)}]
        shown.append(_TRIAL in _render(template, setting, messages).get("text", ""))
    return shown == [False, True]


def _render(
    template: jinja2.Template | None, setting: dict[str, Any], messages: list[dict[str, Any]]
) -> dict[str, Any]:
    if template is None:
        return {"error": "broken", "message": "the template does not compile"}
    try:
        pieces, size = [], 0
        for piece in template.generate(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            bos_token=setting["bos"],
            eos_token=setting["eos"],
        ):
            size += len(piece)
            if size > MAX_OUTPUT_CHARS:
                return {"error": "broken", "message": f"more than {MAX_OUTPUT_CHARS} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except _RefusedError as error:
        return {"error": "refused", "message": str(error)[:500]}
    except Exception as error:  # noqa: BLE001 - a template can raise anything
        return {"error": "broken", "message": _describe(error)}


class _RefusedError(Exception):
    """The template called raise_exception: the conversation is not one that it knows."""


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - the names and order that templates use
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - as above
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: object) -> NoReturn:
    raise _RefusedError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
