"""Typed, bounded access to a GGUF's metadata.

Owns: Keys and the error for values that make no sense. Does not own: reading bytes
(``gguf_header``) or what the keys mean (``layers``, ``facts``). Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NoReturn

from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.gguf_header import Skipped

if TYPE_CHECKING:
    from terrace_runtime.models.gguf_header import Value

MAX_LAYERS: Final = 512
"""LLAMA_MAX_LAYERS of the pinned build."""


def invalid_model(what: str) -> NoReturn:
    """Refuse the model: its header reads well and describes nothing that can be served."""
    raise FetchError("InvalidModel", f"the model cannot be planned: {what}")


def names_of(text: str) -> frozenset[str]:
    """Words as a set: how tables of architectures are written."""
    return frozenset(text.split())


class Keys:
    """Typed access to metadata; architecture keys are named without their prefix."""

    def __init__(self, metadata: dict[str, Value]) -> None:
        self._metadata = metadata
        self.architecture = self.text("general.architecture")
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", self.architecture):
            invalid_model(f"general.architecture is {self.architecture!r}")

    def text(self, key: str) -> str:
        """The string at ``key``; empty when absent."""
        value = self._metadata.get(key, "")
        if not isinstance(value, str):
            invalid_model(f"{key} is not a string")
        return value

    def raw(self, key: str) -> Value | None:
        """The raw value at a full key."""
        return self._metadata.get(key)

    def get(self, key: str) -> Value | None:
        """The raw value of an architecture key."""
        return self._metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int) -> int:
        """A whole number >= 0 below 2^31."""
        value = self.get(key)
        return default if value is None else self._whole(key, value)

    def positive(self, key: str) -> int:
        """A whole number that must be there and above 0."""
        value = self.number(key, 0)
        if value == 0:
            invalid_model(f"{self.architecture}.{key} is missing or 0")
        return value

    def per_layer(self, key: str, num_layers: int, default: int) -> list[int]:
        """One number per layer; a single number stands for all of them."""
        value = self.get(key)
        if isinstance(value, tuple):
            numbers = [self._whole(key, item) for item in value[:MAX_LAYERS]]
            last = numbers[-1] if numbers else default
            return (numbers + [last] * num_layers)[: max(num_layers, len(numbers))]
        return [default if value is None else self._whole(key, value)] * num_layers

    def array_length(self, key: str) -> int:
        """Items of an array at a full key; 0 when absent."""
        value = self._metadata.get(key)
        if isinstance(value, Skipped):
            return value.count
        return len(value) if isinstance(value, tuple) else 0

    def _whole(self, key: str, value: Value) -> int:
        if not isinstance(value, int) or not 0 <= value < 2**31:
            invalid_model(f"{self.architecture}.{key} is {value!r}, not a number from 0 to 2^31")
        return int(value)
