"""What a source URI means: the three kinds of places a model file comes from. Pure.

Owns: parsing and refusing URIs. Does not own: reaching them (``fetch``, ``download``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import urlsplit, urlunsplit

from terrace_runtime.models.errors import FetchError

if TYPE_CHECKING:
    from terrace_runtime.contract import FetchSpec

MAX_PATH_BYTES: Final = 768
"""The path travels in a termination message, beside the facts."""


@dataclass(frozen=True)
class DemoSource:
    """``demo://NAME``: a model that ships with the runtime."""

    name: str


@dataclass(frozen=True)
class ClaimSource:
    """``pvc://CLAIM/PATH``: a file in the user's own claim, used in place."""

    claim: str
    path: str


@dataclass(frozen=True)
class HttpSource:
    """``https://...``, or ``http://...`` with a checksum."""

    url: str


Source = DemoSource | ClaimSource | HttpSource


def parse_source(spec: FetchSpec) -> Source:
    """The place that ``spec.uri`` names; raises FetchError for one that cannot be used."""
    scheme, _, rest = spec.uri.partition("://")
    if any(ord(c) <= ord(" ") or ord(c) == 127 for c in spec.uri):  # noqa: PLR2004 - DEL
        _refuse("the source holds a space or a control character")
    scheme = scheme.lower()
    if scheme == "demo":
        return _demo(rest)
    if scheme == "pvc":
        return _claim(rest)
    if scheme not in {"http", "https"}:
        _refuse(f"the scheme {scheme[:32]!r} is not supported; use demo, pvc, https or http")
    if scheme == "http" and spec.sha256 is None:
        _refuse("an http:// source needs source.sha256, or use https://")
    return HttpSource(http_url(spec.uri))


def http_url(url: str) -> str:
    """``url`` without fragment; raises FetchError when it is no plain http(s) URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise FetchError("DownloadFailed", f"not a URL: {error}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        _refuse("not an http:// or https:// URL with a host")
    if parts.username is not None or parts.password is not None or "\\" in url:
        _refuse("credentials and backslashes in a URL are not supported")
    return urlunsplit(parts._replace(fragment=""))


def shown(url: str) -> str:
    """``url`` as it may be logged: without its query, which can hold a secret."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query="", fragment=""))


def _demo(name: str) -> DemoSource:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name):
        _refuse(f"{name[:64]!r} is not the name of a demo model")
    return DemoSource(name)


def _claim(rest: str) -> ClaimSource:
    claim, _, path = rest.partition("/")
    pieces = path.split("/")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", claim):
        _refuse(f"{claim[:64]!r} is not the name of a claim")
    if len(path.encode()) > MAX_PATH_BYTES:
        _refuse(f"the path in the claim is longer than {MAX_PATH_BYTES} bytes")
    if not path or any(piece in {"", ".", ".."} for piece in pieces) or "\\" in path:
        _refuse("pvc://CLAIM/PATH needs a plain path: no '..', '.', empty piece or backslash")
    return ClaimSource(claim, path)


def _refuse(why: str) -> NoReturn:
    raise FetchError("DownloadFailed", why)
