"""Guarded HTTP: one GET with redirects, retries and bounds, for every remote source.

Owns: sessions, redirects, whom a secret goes to, what a status means, waiting between tries. Does
not own: which addresses are reachable (``addresses``), files (``download``), what to ask for
(``resolve`` and what it calls). Every redirect is parsed and checked anew, and the address
connected to is checked once more after connecting.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import re
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

import aiohttp
import stamina
from yarl import URL

from terrace_runtime.models.addresses import AddressRule, GuardedResolver, refused
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.sources import http_url, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

OK: Final = 200
PARTIAL: Final = 206
RANGE_NOT_SATISFIABLE: Final = 416
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_RETRY_AFTER_S: Final = 120.0
_MAX_DOCUMENT_BYTES: Final = 32 * 2**20
_DOCUMENT_S: Final = 60.0
_MAX_CHALLENGES: Final = 2


@dataclass(frozen=True)
class DownloadLimits:
    """Bounds on time and size."""

    attempts: int = 6
    """Tries in a row that bring no byte."""
    wait_s: float = 1.0
    """Before the second try; doubles up to a minute."""
    connect_timeout_s: float = 20.0
    read_timeout_s: float = 60.0
    max_redirects: int = 5
    max_unsized_bytes: int = 64 * 2**30
    """For answers that do not say how long they are."""
    min_window_bytes: int = 64 * 2**10
    """Least that must arrive in each ``window_s``, or the connection is given up."""
    window_s: float = 60.0


class Access:
    """What to add to a request so that its source answers; this one adds nothing."""

    def headers(self, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Headers for a GET of ``url`` beside ``headers``; none unless ``url`` may see them."""
        del url, headers
        return {}

    async def again(
        self, web: Web, url: str, status: int, headers: Mapping[str, str]
    ) -> str | None:
        """The URL to ask once more, after an answer that names what it wants; or ``None``."""
        del web, url, status, headers
        return None

    def explain(self, status: int, headers: Mapping[str, str]) -> str:
        """What the source says about an error beyond its status; may be empty."""
        del status, headers
        return ""


class Web:
    """A session that reaches permitted addresses alone."""

    def __init__(
        self, session: aiohttp.ClientSession, rule: AddressRule, limits: DownloadLimits
    ) -> None:
        self._session = session
        self._rule = rule
        self.limits = limits

    @contextlib.asynccontextmanager
    async def get(
        self, url: str, access: Access, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer after all redirects, whatever its status; raises FetchError alone."""
        redirects = challenges = 0
        with _translated(url):
            while redirects <= self.limits.max_redirects:
                async with self._ask(url, access, headers) as response:
                    self._check_peer(response)
                    status, answer = response.status, response.headers.copy()
                    if status in {OK, PARTIAL, RANGE_NOT_SATISFIABLE}:
                        yield response
                        return
                more = challenges < _MAX_CHALLENGES
                target = await access.again(self, url, status, answer) if more else None
                if target is None:
                    target = _redirect(url, status, answer, access)
                    redirects += 1
                else:
                    challenges += 1
                url = target
            raise FetchError("DownloadFailed", f"more than {self.limits.max_redirects} redirects")

    async def document(
        self, url: str, access: Access, headers: Mapping[str, str] | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """A small body and its headers, tried again where that may help; raises FetchError."""
        body: bytes = b""
        answer: Mapping[str, str] = {}
        async for attempt in tries(self.limits):
            with attempt, _translated(url):
                async with (
                    asyncio.timeout(_DOCUMENT_S),
                    self.get(url, access, headers or {}) as got,
                ):
                    body = await read_up_to(got, _MAX_DOCUMENT_BYTES + 1)
                    answer = got.headers.copy()
        if len(body) > _MAX_DOCUMENT_BYTES:
            raise FetchError(
                "DownloadFailed", f"{shown(url)} answers more than {_MAX_DOCUMENT_BYTES} bytes"
            )
        return body, answer

    def _ask(
        self, url: str, access: Access, headers: Mapping[str, str]
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        self._rule.check_host(urlsplit(url).hostname or "")
        own = {"Accept-Encoding": "identity", "User-Agent": "terrace", **headers}
        # What is plain already goes out as it is: a signature counts on every byte of it.
        target = URL(url, encoded=re.fullmatch(r"[!-~]*", url) is not None)
        return self._session.get(
            target, headers={**own, **access.headers(url, own)}, allow_redirects=False
        )

    def _check_peer(self, response: aiohttp.ClientResponse) -> None:
        connection = response.connection
        transport = connection.transport if connection is not None else None
        peer = transport.get_extra_info("peername") if transport is not None else None
        # A short answer can be complete, its connection released; its address was resolved by us.
        if peer is not None and not self._rule.permits(str(peer[0])):
            raise refused(str(peer[0]))


@contextlib.asynccontextmanager
async def open_web(
    rule: AddressRule, limits: DownloadLimits, authority: str = ""
) -> AsyncIterator[Web]:
    """A session for one fetch.

    ``authority`` holds certificates (PEM) that count beside those the system trusts. Raises
    FetchError when it does not.
    """
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=limits.connect_timeout_s, sock_read=limits.read_timeout_s
    )
    connector = aiohttp.TCPConnector(
        resolver=GuardedResolver(rule), limit=2, force_close=True, ssl=_trust(authority)
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        auto_decompress=False,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield Web(session, rule, limits)


def _trust(authority: str) -> ssl.SSLContext | bool:
    if not authority:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cadata=authority)
    except (ssl.SSLError, ValueError):
        raise FetchError("Unauthorized", "the secret's ca.crt holds no certificate") from None
    return context


async def read_up_to(response: aiohttp.ClientResponse, count: int) -> bytes:
    """The first ``count`` bytes of a body, or all of it."""
    pieces, left = [], count
    while left and (piece := await response.content.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def tries(limits: DownloadLimits) -> AsyncIterator[stamina.Attempt]:
    """Attempts, with pauses between them, for as long as errors may pass by themselves."""
    return aiter(
        stamina.retry_context(
            on=_backoff,
            attempts=limits.attempts,
            timeout=None,
            wait_initial=limits.wait_s,
            wait_max=60.0,
            wait_jitter=limits.wait_s,
        )
    )


def _backoff(error: Exception) -> bool | float:
    """Whether to try again, or after how many seconds the server wants us to."""
    if not isinstance(error, FetchError) or error.permanent or error.reason == "DiskFull":
        return False
    return True if error.retry_after_s is None else error.retry_after_s


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Say the errors of the network in the words of the contract."""
    try:
        yield
    except FetchError:
        raise
    except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as error:
        why = getattr(error, "certificate_error", error)
        raise FetchError(
            "DownloadFailed",
            f"{shown(url)}: certificate refused: {str(why)[:300]}; of an authority of your own, "
            "put its certificate under ca.crt into the source's secret",
        ) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, FetchError) else None
        if cause is not None:
            raise cause from error
        what = str(error) or type(error).__name__
        raise FetchError(
            "DownloadFailed", f"{shown(url)}: {what[:300]}", permanent=False
        ) from error


def _redirect(url: str, status: int, headers: Mapping[str, str], access: Access) -> str:
    """Where an answer sends us; raises FetchError for one that is an error."""
    if status not in _REDIRECTS:
        raise _failed(url, status, headers, access)
    try:
        target = http_url(urljoin(url, headers.get("Location", "")))
    except ValueError as error:
        raise FetchError(
            "DownloadFailed", f"{shown(url)} redirects to what is not a URL: {error}"
        ) from None
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
        raise FetchError("DownloadFailed", f"{shown(url)} redirects to plain http")
    return target


def _failed(url: str, status: int, headers: Mapping[str, str], access: Access) -> FetchError:
    said = access.explain(status, headers)
    where = f"{shown(url)} answers {status}{': ' if said else ''}{said}"
    if status in (404, 410):
        return FetchError("NotFound", where)
    if status in (401, 403, 407):
        return FetchError("Unauthorized", where)
    if status in (408, 425, 429) or status >= 500:  # noqa: PLR2004 - the class of HTTP codes
        return FetchError(
            "DownloadFailed", where, permanent=False, retry_after_s=_retry_after(headers)
        )
    return FetchError("DownloadFailed", where)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of Retry-After, in either form, bounded."""
    text = headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,9}", text):
        return min(float(text), _MAX_RETRY_AFTER_S)
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return min(max(date.timestamp() - time.time(), 0.0), _MAX_RETRY_AFTER_S)
