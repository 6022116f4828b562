"""Log probabilities in OpenAI's two forms, and when a choice hands them out.

Owns: which tokens belong to the text that was handed out, and how they are written. Does not own:
the numbers (``engine.sampling``). Pure. Next: ``wire.py`` puts them into documents and events.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from terrace_runtime.engine.request import TokenLogprob, TokenLogprobs


class Withheld:
    """Entries of one choice whose text is held back, because a stop string may begin there.

    An entry goes out with the first of its text. What no text came of has none: the token that ends
    the answer, and the tokens of a stop string.
    """

    def __init__(self) -> None:
        self._entries: deque[TokenLogprobs] = deque()
        self._begins_at = 0
        """Bytes of the answer before the first entry."""
        self._num_bytes = 0
        """Bytes of the answer handed out."""

    def release(self, text: str, entries: Iterable[TokenLogprobs]) -> list[TokenLogprobs]:
        """The entries that go out with ``text``, the next piece of the answer."""
        self._entries.extend(entries)
        self._num_bytes += len(text.encode())
        found = []
        while self._entries and self._begins_at < self._num_bytes:
            entry = self._entries.popleft()
            self._begins_at += entry.num_bytes
            found.append(entry)
        return found


def chat_logprobs(entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """``choices[].logprobs`` of chat completions."""
    content = [
        {**_chat_entry(entry), "top_logprobs": [_chat_entry(one) for one in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _chat_entry(entry: TokenLogprob) -> dict[str, Any]:
    raw = entry.piece.encode("latin-1")
    text = raw.decode("utf-8", "replace")
    return {"token": text, "logprob": entry.logprob, "bytes": list(raw)}


def completion_logprobs(entries: Sequence[TokenLogprobs], begin: int) -> dict[str, Any]:
    """``choices[].logprobs`` of completions; ``begin``: characters of the text before them."""
    offsets = []
    for entry in entries:
        offsets.append(begin)
        begin += num_characters(entry)
    return {
        "tokens": [_key(entry) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [_by_key(entry) for entry in entries] if _has_top(entries) else None,
        "text_offset": offsets,
    }


def num_characters(entry: TokenLogprobs) -> int:
    """Characters that begin in a token."""
    if not entry.num_bytes:
        return 0
    return sum(byte & 0xC0 != 0x80 for byte in entry.piece.encode("latin-1"))  # noqa: PLR2004 - UTF-8


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
