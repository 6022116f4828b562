"""Log probabilities in OpenAI's two forms, and when a choice hands them out.

Owns: which tokens belong to the text that was handed out, and how they are written. Does not own:
the numbers (``engine.sampling``). Pure. Next: ``wire.py`` puts them into documents and events.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from terrace_runtime.engine.request import TokenLogprob, TokenLogprobs


class Placed(NamedTuple):
    """An entry and where its text is."""

    entry: TokenLogprobs
    at: int
    """Which character of the answer its first byte belongs to, from 0 on."""


class Withheld:
    """Entries of one choice whose text is held back, because a stop string may begin there.

    An entry goes out with the first of its text. What no text came of has none: the token that ends
    the answer, and the tokens of a stop string. Characters are counted, for bytes that are none
    become one of three bytes.
    """

    def __init__(self) -> None:
        self._entries: deque[Placed] = deque()
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._num_decoded = 0
        """Characters of all entries so far that are complete."""
        self._num_given = 0
        """Characters of the answer handed out."""

    def release(self, text: str, entries: Iterable[TokenLogprobs]) -> list[Placed]:
        """The entries that go out with ``text``, the next piece of the answer."""
        self._entries.extend([Placed(entry, self._place(entry)) for entry in entries])
        self._num_given += len(text)
        found = []
        while self._entries and self._entries[0].at < self._num_given:
            found.append(self._entries.popleft())
        return found

    def _place(self, entry: TokenLogprobs) -> int:
        raw = entry.piece.encode("latin-1")[: entry.num_bytes]
        self._num_decoded += len(self._decoder.decode(raw[:1]))
        is_inside = bool(self._decoder.getstate()[0])
        at = self._num_decoded + is_inside - bool(raw)
        self._num_decoded += len(self._decoder.decode(raw[1:]))
        return at


def chat_logprobs(found: Iterable[Placed]) -> dict[str, Any]:
    """``choices[].logprobs`` of chat completions."""
    content = [
        {**_chat_entry(entry), "top_logprobs": [_chat_entry(one) for one in entry.top]}
        for entry, _ in found
    ]
    return {"content": content, "refusal": None}


def _chat_entry(entry: TokenLogprob) -> dict[str, Any]:
    raw = entry.piece.encode("latin-1")
    text = raw.decode("utf-8", "replace")
    return {"token": text, "logprob": entry.logprob, "bytes": list(raw)}


def completion_logprobs(found: Sequence[Placed]) -> dict[str, Any]:
    """``choices[].logprobs`` of completions."""
    entries = [one.entry for one in found]
    return {
        "tokens": [_key(entry) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [_by_key(entry) for entry in entries] if _has_top(entries) else None,
        "text_offset": [one.at for one in found],
    }


def _has_top(entries: Sequence[TokenLogprobs]) -> bool:
    return any(entry.top for entry in entries)


def _by_key(entry: TokenLogprobs) -> dict[str, float]:
    """The likeliest tokens and, if it is none of them, the one that was taken."""
    found = {_key(one): one.logprob for one in entry.top}
    found.setdefault(_key(entry), entry.logprob)
    return found


def _key(entry: TokenLogprob) -> str:
    """A token's text; one that is no text by itself as OpenAI writes it."""
    raw = entry.piece.encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
