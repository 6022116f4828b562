"""Downloads one http(s) file into the cache's partial file: resumable, bounded, guarded.

Owns: requests, redirects, ranges, retries, and the checks while bytes arrive. Does not own: which
addresses are reachable (``addresses``), the checksum and the commit (``fetch``). Every redirect is
parsed and checked anew, and the address connected to is checked once more after connecting.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

import aiohttp
import stamina

from terrace_runtime.models.addresses import AddressRule, GuardedResolver, refused
from terrace_runtime.models.cache import Partial, disk_errors
from terrace_runtime.models.content import check_magic
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.sources import http_url, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import BinaryIO

    from terrace_runtime.models.cache import ModelCache
    from terrace_runtime.models.progress import ProgressReporter

_OK: Final = 200
_PARTIAL: Final = 206
_RANGE_NOT_SATISFIABLE: Final = 416
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_RETRY_AFTER_S: Final = 120.0
_CHUNK: Final = 2**20


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


async def download(
    url: str,
    cache: ModelCache,
    rule: AddressRule,
    reporter: ProgressReporter,
    limits: DownloadLimits = DownloadLimits(),
) -> None:
    """Complete the cache's partial file from ``url``; raises FetchError.

    Tries go on as long as they bring bytes, and ``limits.attempts`` times when they do not.
    """
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=limits.connect_timeout_s, sock_read=limits.read_timeout_s
    )
    connector = aiohttp.TCPConnector(resolver=GuardedResolver(rule), limit=1, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False, trust_env=False
    ) as session:
        transfer = _Transfer(session, cache, rule, reporter, limits)
        while True:
            before = _size(cache)
            try:
                await _persist(transfer, url, limits)
            except FetchError as error:
                if error.permanent or error.reason == "DiskFull" or _size(cache) <= before:
                    raise
            else:
                return


async def _persist(transfer: _Transfer, url: str, limits: DownloadLimits) -> None:
    async for attempt in stamina.retry_context(
        on=_backoff,
        attempts=limits.attempts,
        timeout=None,
        wait_initial=limits.wait_s,
        wait_max=60.0,
        wait_jitter=limits.wait_s,
    ):
        with attempt:
            await transfer.run(url)


def _backoff(error: Exception) -> bool | float:
    """Whether to try again, or after how many seconds the server wants us to."""
    if not isinstance(error, FetchError) or error.permanent or error.reason == "DiskFull":
        return False
    return True if error.retry_after_s is None else error.retry_after_s


class _Transfer:
    """One attempt after another on the same partial file."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        cache: ModelCache,
        rule: AddressRule,
        reporter: ProgressReporter,
        limits: DownloadLimits,
    ) -> None:
        self._session = session
        self._cache = cache
        self._rule = rule
        self._reporter = reporter
        self._limits = limits

    async def run(self, url: str) -> None:
        """Bring the partial file forward; raises FetchError, also for foreign errors."""
        try:
            async with asyncio.timeout(None):
                await self._follow(url)
        except FetchError:
            raise
        except ssl.SSLCertVerificationError as error:
            raise FetchError("DownloadFailed", f"certificate refused: {error.reason}") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise FetchError("DownloadFailed", f"certificate refused: {error}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, FetchError) else None
            if cause is not None:
                raise cause from error
            what = str(error) or type(error).__name__
            raise FetchError(
                "DownloadFailed", f"{shown(url)}: {what[:300]}", permanent=False
            ) from error

    async def _follow(self, url: str) -> None:
        for _ in range(self._limits.max_redirects + 1):
            target = await self._request(url)
            if target is None:
                return
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise FetchError("DownloadFailed", f"{shown(url)} redirects to plain http")
            url = target
        raise FetchError("DownloadFailed", f"more than {self._limits.max_redirects} redirects")

    async def _request(self, url: str) -> str | None:
        """One request; returns where it redirects to, or ``None`` when the file is complete."""
        self._rule.check_host(urlsplit(url).hostname or "")
        have, note = _size(self._cache), self._cache.note()
        headers = {"Accept-Encoding": "identity", "User-Agent": "terrace"}
        if have and note.validator:
            headers |= {"Range": f"bytes={have}-", "If-Range": note.validator}
        async with self._session.get(url, headers=headers, allow_redirects=False) as response:
            self._check_peer(response)
            if response.status in _REDIRECTS:
                return http_url(urljoin(url, response.headers.get("Location", "")))
            if response.status == _RANGE_NOT_SATISFIABLE:
                self._check_complete(response, have)
            else:
                await self._receive(response, have if response.status == _PARTIAL else 0)
        return None

    def _check_peer(self, response: aiohttp.ClientResponse) -> None:
        connection = response.connection
        transport = connection.transport if connection is not None else None
        peer = transport.get_extra_info("peername") if transport is not None else None
        # A short answer can be complete, its connection released; its address was resolved by us.
        if peer is not None and not self._rule.permits(str(peer[0])):
            raise refused(str(peer[0]))

    def _check_complete(self, response: aiohttp.ClientResponse, have: int) -> None:
        """416: we have all of it already, or what we have is of no use."""
        match = re.fullmatch(r"bytes \*/(\d{1,19})", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            self._cache.discard_partial()
            raise FetchError("DownloadFailed", "the source changed; starting anew", permanent=False)

    async def _receive(self, response: aiohttp.ClientResponse, start: int) -> None:
        _check_status(response)
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity":
            raise FetchError("DownloadFailed", f"the source sends the file {encoding[:32]}-encoded")
        total = _total_bytes(response)
        if response.status == _PARTIAL and not _continues(response, start):
            self._cache.discard_partial()
            raise FetchError("DownloadFailed", "the source sent a wrong range", permanent=False)
        self._cache.check_room(max(total - start, 0))
        self._cache.write_note(Partial(validator=_validator(response), total_bytes=total))
        with (
            disk_errors(self._cache.partial.parent),
            self._cache.partial.open("r+b" if start else "wb") as file,
        ):
            file.seek(start)
            file.truncate()
            await self._copy(response, file, start, total)

    async def _copy(
        self, response: aiohttp.ClientResponse, file: BinaryIO, start: int, total: int
    ) -> None:
        done, most = start, total or self._limits.max_unsized_bytes
        head = b""
        async for piece in self._pieces(response):
            if done == len(head) and len(head) < 4:  # noqa: PLR2004 - length of the magic
                head += piece[:512]
                check_magic(head, response.content_type)
            file.write(piece)
            done += len(piece)
            if done > most:
                raise FetchError("DownloadFailed", f"the source sends more than {most} bytes")
            self._reporter.report("download", done, total)
        if total and done < total:
            raise FetchError(
                "DownloadFailed",
                f"the connection ended at byte {done} of {total}",
                permanent=False,
            )

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body; raises FetchError when it only trickles."""
        window_end, in_window = time.monotonic() + self._limits.window_s, 0
        async for piece in response.content.iter_chunked(_CHUNK):
            in_window += len(piece)
            if time.monotonic() > window_end:
                if in_window < self._limits.min_window_bytes:
                    raise FetchError(
                        "DownloadFailed", f"only {in_window} bytes in a minute", permanent=False
                    )
                window_end, in_window = time.monotonic() + self._limits.window_s, 0
            yield piece


def _check_status(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status in (_OK, _PARTIAL):
        return
    where = f"{shown(str(response.url))} answers {status}"
    if status in (404, 410):
        raise FetchError("NotFound", where)
    if status in (401, 403, 407):
        raise FetchError("Unauthorized", where)
    if status in (408, 425, 429) or status >= 500:  # noqa: PLR2004 - the class of HTTP codes
        raise FetchError("DownloadFailed", where, permanent=False, retry_after_s=_wait(response))
    raise FetchError("DownloadFailed", where)


def _wait(response: aiohttp.ClientResponse) -> float | None:
    """Seconds of Retry-After, in either form, bounded."""
    text = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}", text):
        return min(float(text), _MAX_RETRY_AFTER_S)
    try:
        date = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return min(max(date.timestamp() - time.time(), 0.0), _MAX_RETRY_AFTER_S)


def _total_bytes(response: aiohttp.ClientResponse) -> int:
    """Length of the whole file; 0 when the server does not say."""
    if response.status == _PARTIAL:
        match = _content_range(response)
        return int(match[2]) if match is not None and match[2] != "*" else 0
    return response.content_length or 0


def _continues(response: aiohttp.ClientResponse, start: int) -> bool:
    match = _content_range(response)
    return match is not None and int(match[1]) == start


def _content_range(response: aiohttp.ClientResponse) -> re.Match[str] | None:
    text = response.headers.get("Content-Range", "")
    return re.fullmatch(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)", text)


def _validator(response: aiohttp.ClientResponse) -> str:
    etag = response.headers.get("ETag", "")
    if etag.startswith('"'):
        return etag[:256]
    return response.headers.get("Last-Modified", "")[:64]


def _size(cache: ModelCache) -> int:
    try:
        return cache.partial.stat().st_size
    except FileNotFoundError:
        return 0
