"""A loaded model's vocabulary: texts of tokens, tokens of texts.

Owns: every call into llama.cpp that takes a vocabulary. Does not own: the model; ``llama.py`` hands
the binding in, for it alone imports it. Reading is thread-safe. Next: ``engine.detokenizer``.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from terrace_runtime.backend import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterable

_PIECE_BYTES = 256


class Vocabulary:
    """Tokens 0 .. size - 1."""

    def __init__(self, lib: Any, pointer: Any) -> None:
        """``lib`` is llama_cpp's low-level module, ``pointer`` a ``llama_vocab *``."""
        self._lib = lib
        self.pointer = pointer
        self.size = int(lib.llama_vocab_n_tokens(pointer))
        self.bos = int(lib.llama_vocab_bos(pointer))
        """-1: there is none."""
        self.eos = int(lib.llama_vocab_eos(pointer))

    def pieces(self) -> tuple[bytes, ...]:
        """Text of every token; control tokens have none."""
        return tuple(self._piece(token, special=False) for token in range(self.size))

    def eog(self) -> frozenset[int]:
        """Tokens that end a generation."""
        is_eog = self._lib.llama_vocab_is_eog
        return frozenset(token for token in range(self.size) if is_eog(self.pointer, token))

    def controls(self) -> dict[int, str]:
        """How control tokens are written, by id."""
        is_control = self._lib.llama_vocab_is_control
        found = (token for token in range(self.size) if is_control(self.pointer, token))
        return {token: self.text(token) for token in found}

    def text(self, token: int) -> str:
        """How ``token`` is written, control tokens too; empty for one that does not exist."""
        if not 0 <= token < self.size:
            return ""
        return self._piece(token, special=True).decode("utf-8", "replace")

    def tokenize(self, text: str, *, special: bool, add_bos: bool) -> list[int]:
        """See ``Backend.tokenize``."""
        wants_bos = add_bos and self.bos >= 0 and self._lib.llama_vocab_get_add_bos(self.pointer)
        head = [self.bos] if wants_bos else []
        raw = text.encode("utf-8", "replace")
        if not raw:
            return head
        room = len(raw) + 8
        tokens = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self.pointer, raw, len(raw), tokens, room, False, special)
        if count < 0:
            raise BackendError(f"llama.cpp cannot tokenize {len(raw)} bytes of text ({count})")
        return head + tokens[:count]

    def tail(self) -> tuple[int, ...]:
        """What the vocabulary's own rule puts behind a text that is complete: SEP or EOS."""
        lib, pointer = self._lib, self.pointer
        if lib.llama_vocab_get_add_sep(pointer) and lib.llama_vocab_sep(pointer) >= 0:
            return (int(lib.llama_vocab_sep(pointer)),)
        return (self.eos,) if lib.llama_vocab_get_add_eos(pointer) and self.eos >= 0 else ()

    def _piece(self, token: int, *, special: bool) -> bytes:
        room = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._lib.llama_token_to_piece(self.pointer, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count


def by_length(texts: Iterable[str]) -> tuple[str, ...]:
    """Each of ``texts`` once, the longest first."""
    return tuple(sorted(set(texts) - {""}, key=lambda text: (-len(text), text)))
