"""Downloads one remote file into its unfinished file: resumable, bounded, checked as it arrives.

Owns: ranges, what an answer must look like, going on after a break. Does not own: requests and
redirects (``web``), the checksum and the commit (``fetch``).
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

from terrace_runtime.models.content import check_magic
from terrace_runtime.models.disk import disk_errors
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.unfinished import Note
from terrace_runtime.models.web import PARTIAL, RANGE_NOT_SATISFIABLE, tries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import BinaryIO

    import aiohttp

    from terrace_runtime.models.remote import RemoteFile
    from terrace_runtime.models.unfinished import Unfinished
    from terrace_runtime.models.web import Access, Web

_CHUNK: Final = 2**20
_MAGIC_BYTES: Final = 4


class Download:
    """One file on its way."""

    def __init__(
        self,
        file: RemoteFile,
        access: Access,
        target: Unfinished,
        on_size: Callable[[int, int], Awaitable[None]],
        on_bytes: Callable[[int, int], None],
    ) -> None:
        """Both hear the bytes done and in total (0: unknown); ``on_size`` before each body."""
        self._file = file
        self._access = access
        self._target = target
        self._on_size = on_size
        self._on_bytes = on_bytes

    async def run(self, web: Web) -> None:
        """Complete the unfinished file; raises FetchError.

        Tries go on as long as they bring bytes, and ``limits.attempts`` times when they do not.
        """
        while not self._is_complete():
            before = self._target.size
            try:
                async for attempt in tries(web.limits):
                    with attempt:
                        await self._continue(web)
            except FetchError as error:
                is_final = error.permanent or error.reason == "DiskFull"
                if is_final or self._target.size <= before:
                    raise
            else:
                return

    def _is_complete(self) -> bool:
        return self._file.size > 0 and self._target.size == self._file.size

    async def _continue(self, web: Web) -> None:
        have, note = self._target.size, self._target.note()
        headers = {}
        if have and note.validator:
            headers = {"Range": f"bytes={have}-", "If-Range": note.validator}
        elif have and self._file.sha256 is not None:
            # Without a validator the checksum says whether the two halves belong together.
            headers = {"Range": f"bytes={have}-"}
        async with web.get(self._file.url, self._access, headers) as response:
            if response.status == RANGE_NOT_SATISFIABLE:
                self._check_finished(response, have)
            else:
                start = have if response.status == PARTIAL else 0
                await self._receive(web, response, start)

    def _check_finished(self, response: aiohttp.ClientResponse, have: int) -> None:
        """416: we have all of it already, or what we have is of no use."""
        match = re.fullmatch(r"bytes \*/([0-9]{1,19})", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            self._target.discard()
            raise FetchError("DownloadFailed", "the source changed; starting anew", permanent=False)

    async def _receive(self, web: Web, response: aiohttp.ClientResponse, start: int) -> None:
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity":
            raise FetchError("DownloadFailed", f"the source sends the file {encoding[:32]}-encoded")
        total = total_bytes(response)
        if response.status == PARTIAL and range_start(response) != start:
            self._target.discard()
            raise FetchError("DownloadFailed", "the source sent a wrong range", permanent=False)
        if start and self._file.sha256 is None:
            # No checksum of the source's would tell.
            self._check_same(response, total)
        if total and self._file.size and total != self._file.size:
            raise FetchError(
                "DownloadFailed",
                f"the source announces {self._file.size} bytes and sends {total}",
                permanent=False,
            )
        await self._on_size(start, total)
        self._target.write_note(Note(validator=_validator(response), total_bytes=total))
        with (
            disk_errors(self._target.path.parent),
            self._target.path.open("r+b" if start else "wb") as out,
        ):
            out.seek(start)
            out.truncate()
            await self._copy(web, response, out, start, total)

    def _check_same(self, response: aiohttp.ClientResponse, total: int) -> None:
        if _is_of_another_file(self._target.note(), response, total):
            self._target.discard()
            raise FetchError("DownloadFailed", "the source changed; starting anew", permanent=False)

    async def _copy(
        self, web: Web, response: aiohttp.ClientResponse, out: BinaryIO, start: int, total: int
    ) -> None:
        done, most = start, total or self._file.size or web.limits.max_unsized_bytes
        head = b""
        async for piece in _pieces(web, response):
            if done == len(head) and len(head) < _MAGIC_BYTES:
                head += piece[:512]
                check_magic(head, response.content_type)
            out.write(piece)
            # What is told as done outlives a kill.
            out.flush()
            done += len(piece)
            if done > most:
                raise FetchError("DownloadFailed", f"the source sends more than {most} bytes")
            self._on_bytes(done, total)
        if total and done < total:
            raise FetchError(
                "DownloadFailed",
                f"the connection ended at byte {done} of {total}",
                permanent=False,
            )


async def size_of(file: RemoteFile, access: Access, web: Web) -> int:
    """Bytes of a file without fetching it; 0 when its server does not say. Raises FetchError."""
    async for attempt in tries(web.limits):
        with attempt:
            async with web.get(file.url, access, {"Range": "bytes=0-0"}) as response:
                return total_bytes(response)
    raise AssertionError  # The last attempt raises.


async def _pieces(web: Web, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body; raises FetchError when it only trickles."""
    limits = web.limits
    window_end, in_window = time.monotonic() + limits.window_s, 0
    async for piece in response.content.iter_chunked(_CHUNK):
        in_window += len(piece)
        if time.monotonic() > window_end:
            if in_window < limits.min_window_bytes:
                raise FetchError(
                    "DownloadFailed",
                    f"only {in_window} bytes in {limits.window_s:g} s",
                    permanent=False,
                )
            window_end, in_window = time.monotonic() + limits.window_s, 0
        yield piece


def total_bytes(response: aiohttp.ClientResponse) -> int:
    """Length of the whole file; 0 when the server does not say."""
    if response.status == PARTIAL:
        match = _content_range(response)
        return int(match[2]) if match is not None and match[2] != "*" else 0
    return response.content_length or 0


def range_start(response: aiohttp.ClientResponse) -> int:
    """Where the bytes of a partial answer begin; -1 when it does not say."""
    match = _content_range(response)
    return int(match[1]) if match is not None else -1


def _content_range(response: aiohttp.ClientResponse) -> re.Match[str] | None:
    text = response.headers.get("Content-Range", "")
    return re.fullmatch(r"bytes ([0-9]{1,19})-[0-9]{1,19}/([0-9]{1,19}|\*)", text)


def _validator(response: aiohttp.ClientResponse) -> str:
    etag = response.headers.get("ETag", "")
    found = etag[:256] if etag.startswith('"') else response.headers.get("Last-Modified", "")[:64]
    # What is not ASCII cannot be kept, and servers need not give it back as we would send it.
    return found if found.isascii() else ""


def _is_of_another_file(note: Note, response: aiohttp.ClientResponse, total: int) -> bool:
    """Whether a range belongs to another file than the bytes that ``note`` tells of.

    Some stores give the range that is asked for, whatever If-Range says (RFC 9110, 15.3.7.3).
    """
    known, found = note.validator, _validator(response)
    is_comparable = bool(known and found) and known.startswith('"') == found.startswith('"')
    has_other_size = bool(note.total_bytes and total) and note.total_bytes != total
    return has_other_size or (is_comparable and known != found)
