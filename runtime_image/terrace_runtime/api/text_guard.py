"""Keeps what clients write from being read as control tokens of the conversation. Pure.

Owns: marking client text and the places of images before a template is rendered, and cutting the
rendered prompt at the marks. Does not own: rendering (``chat_template``). Marks are Unicode
noncharacters, which never occur in text that is exchanged; they are taken out of client text first.

Only control tokens that a client really wrote are marked, so an ordinary prompt is tokenized as
one piece. Each is also cut between all its characters, so that a template which slices or splits
the text cannot bring the token back, and a text that ends or begins like part of a token is cut
off from what the template puts beside it.
"""

from __future__ import annotations

import re
from typing import Final

from terrace_runtime.engine.request import PromptPart

OPEN: Final = "\ufdd0"
CLOSE: Final = "\ufdd1"
CUT: Final = "\ufdd2"
IMAGE: Final = "\ufdd3"
_MARKS: Final = re.compile(f"[{OPEN}{CLOSE}{CUT}{IMAGE}]")
_PIECES: Final = re.compile(f"([{OPEN}{CLOSE}{CUT}]|{IMAGE}[0-9]+[.][0-9]+{IMAGE})")


class TextGuard:
    """Guards texts against one vocabulary's control tokens."""

    def __init__(self, special_tokens: tuple[str, ...]) -> None:
        tokens = sorted({t for t in special_tokens if t}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, tokens))) if tokens else None
        self._heads = {token[:n] for token in tokens for n in range(1, len(token))}
        self._tails = {token[n:] for token in tokens for n in range(1, len(token))}
        self._longest = max((len(token) for token in tokens), default=0)

    def mark(self, text: str) -> str:
        """Client ``text``, marked where it could act as a control token."""
        text = _MARKS.sub("", text)
        if self._pattern is None or not text:
            return text
        marked = self._pattern.sub(_wrap, text)
        lengths = range(1, min(self._longest, len(text) + 1))
        start = CUT if any(text[:n] in self._tails for n in lengths) else ""
        end = CUT if any(text[-n:] in self._heads for n in lengths) else ""
        return f"{start}{marked}{end}"


def image_mark(nonce: str, index: int) -> str:
    """Where image ``index`` of a request goes; ``nonce`` (digits) is the request's own secret."""
    return f"{IMAGE}{nonce}.{index}{IMAGE}"


def split(rendered: str, nonce: str = "") -> tuple[PromptPart | int, ...]:
    """A rendered prompt as parts: what stood between marks is not special, the rest is.

    A number is the image of that index, where a mark of this ``nonce`` stood.
    """
    parts: list[PromptPart | int] = []
    is_special = True
    for piece in _PIECES.split(rendered):
        last = parts[-1] if parts else None
        if piece == OPEN:
            is_special = False
        elif piece == CLOSE:
            is_special = True
        elif piece == CUT or not piece:
            continue
        elif piece[0] == IMAGE and nonce and piece.startswith(f"{IMAGE}{nonce}."):
            parts.append(int(piece[len(nonce) + 2 : -1]))
        elif isinstance(last, PromptPart) and not is_special and not last.special:
            # The characters of one control token: plain text again.
            parts[-1] = PromptPart(last.text + piece)
        else:
            parts.append(PromptPart(piece, special=is_special))
    return tuple(parts)


def _wrap(match: re.Match[str]) -> str:
    return f"{OPEN}{CUT.join(match[0])}{CLOSE}"
