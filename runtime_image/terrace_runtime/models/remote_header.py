"""Facts of a remote model from its header alone: range requests, never the whole file.

Owns: how many bytes are asked for (windows that grow until the header ends). Does not own:
reading them (``inspect``, in a child with limits), what a source is (``resolve``). Next:
``inspect_source``.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from terrace_runtime.models.content import check_magic
from terrace_runtime.models.download import range_start, total_bytes
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.inspect import HeaderFile, read_headers
from terrace_runtime.models.web import PARTIAL, RANGE_NOT_SATISFIABLE, read_up_to, tries

if TYPE_CHECKING:
    from terrace_runtime.contract import AnyFacts, FileRole
    from terrace_runtime.models.remote import Remote, RemoteFile
    from terrace_runtime.models.web import Web

_NO_DIGEST: Final = "0" * 64


@dataclass(frozen=True)
class Windows:
    """How much of a file is asked for, at first and at most."""

    first_bytes: int = 8 * 2**20
    """Enough for the vocabulary of most models."""
    first_part_bytes: int = 2**20
    """Of the further parts of a split model, whose headers only name tensors."""
    growth: int = 4
    most_bytes: int = 256 * 2**20
    """As long as a header may be (``gguf_header.MAX_HEADER_BYTES``)."""


async def remote_facts(
    remote: Remote, role: FileRole, web: Web, windows: Windows = Windows()
) -> AnyFacts:
    """Facts of all parts together; the digest is the source's own or all zeros."""
    with tempfile.TemporaryDirectory(prefix="terrace-header-") as folder:
        heads = [_Head(file, Path(folder) / str(index)) for index, file in enumerate(remote.files)]
        for head in heads:
            first = windows.first_bytes if head is heads[0] else windows.first_part_bytes
            await head.extend(remote, web, first)
        while True:
            try:
                files = [HeaderFile(head.path, head.size) for head in heads]
                facts = await asyncio.to_thread(read_headers, files, role)
            except FetchError as error:
                short = [h for h in heads if h.have < min(h.size, windows.most_bytes)]
                if error.reason != "Truncated" or not short:
                    raise
                # The first part has the vocabulary: it is the one to need more, and ends first.
                wanted = short if heads[0] not in short else short[:1]
                for head in wanted:
                    await head.extend(remote, web, head.have * windows.growth)
            else:
                return facts.model_copy(update={"digest": remote.digest or _NO_DIGEST})


class _Head:
    """The first bytes of one file."""

    def __init__(self, file: RemoteFile, path: Path) -> None:
        self._file = file
        self.path = path
        self.size = file.size
        self.have = 0

    async def extend(self, remote: Remote, web: Web, end: int) -> None:
        """Bring the bytes up to ``end``, or up to the file's own; raises FetchError."""
        async for attempt in tries(web.limits):
            with attempt:
                await self._ask(remote, web, min(end, self.size or end))

    async def _ask(self, remote: Remote, web: Web, end: int) -> None:
        headers = {"Range": f"bytes={self.have}-{end - 1}"}
        async with web.get(self._file.url, remote.access, headers) as response:
            if response.status == RANGE_NOT_SATISFIABLE:
                raise FetchError("Truncated", "the source's file is empty")
            start = 0
            if response.status == PARTIAL:
                start = range_start(response)
                if start != self.have:
                    raise FetchError("DownloadFailed", "the source sent a wrong range")
            self.size = total_bytes(response) or self._file.size
            if not self.size:
                raise FetchError("DownloadFailed", "the source does not say how long its file is")
            count = min(end, self.size) - start
            piece = await read_up_to(response, count)
        if len(piece) < count:
            raise FetchError("DownloadFailed", "the connection ended early", permanent=False)
        if start == 0:
            check_magic(piece, response.content_type)
        with self.path.open("ab" if start else "wb") as out:
            out.write(piece)
        self.have = start + count
