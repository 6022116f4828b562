"""The one error of this package: why a model file is not usable, in the contract's words.

Owns: FetchError and its translation to FetchFailure. Does not own: exit codes (``__main__``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from terrace_runtime.contract import FetchFailure

if TYPE_CHECKING:
    from collections.abc import Callable

Reason = Literal[
    "NotFound",
    "Unauthorized",
    "AddressRefused",
    "DownloadFailed",
    "ChecksumMismatch",
    "ChecksumRequired",
    "UnsupportedFormat",
    "Truncated",
    "InvalidModel",
    "DiskFull",
]
_MAX_MESSAGE_BYTES = 1000


class FetchError(Exception):
    """A model file cannot be had or used; ``permanent`` says that trying again is useless."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        permanent: bool = True,
        retry_after_s: float | None = None,
    ) -> None:
        """``retry_after_s``: how long the source asked us to wait."""
        super().__init__(message)
        self.reason: Reason = reason
        self.permanent = permanent
        self.retry_after_s = retry_after_s

    def failure(self, hide: Callable[[str], str] = str) -> FetchFailure:
        """The value that the operator reads; ``hide`` takes secrets out of the message."""
        text = "".join(c if c.isprintable() else "?" for c in hide(str(self)))
        if len(text.encode()) > _MAX_MESSAGE_BYTES:
            text = text.encode()[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + "…"
        return FetchFailure(reason=self.reason, message=text, permanent=self.permanent)
