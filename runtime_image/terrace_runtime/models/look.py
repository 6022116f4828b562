"""What a file will be once a replica has brought it: its facts and its place, without the file.

Owns: reading a source's header alone, and that its digest is known beforehand, since replicas are
told the path by it. Does not own: bringing the file (``fetch`` does that in each replica's init
container), the header (``remote_header``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from terrace_runtime.models.cache import container_path
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.proof import facts_of_files
from terrace_runtime.models.remote_header import remote_facts
from terrace_runtime.models.work import outcome_of, proof_of

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.contract import FetchOutcome
    from terrace_runtime.models.remote import Remote
    from terrace_runtime.models.web import Web
    from terrace_runtime.models.work import Work


async def look_at_copy(work: Work, path: Path) -> FetchOutcome:
    """Of a file that this image brings. Raises FetchError."""
    facts = await asyncio.to_thread(facts_of_files, [path], proof_of(work, 1), work.reporter)
    return outcome_of(container_path(facts.digest), facts)


async def look_at_remote(work: Work, remote: Remote, web: Web) -> FetchOutcome:
    """Of a remote file. Raises FetchError: ChecksumRequired where nobody says its digest."""
    count = len(remote.files)
    digest = remote.digest or (work.spec.sha256 if count == 1 else None)
    if digest is None:
        # One checksum cannot say what several files are.
        way_out = "set source.sha256, or use" if count == 1 else "use"
        raise FetchError(
            "ChecksumRequired",
            "this source does not say the sha256 of what it holds, and the pool's "
            f"modelCache.sharing is PerReplica: {way_out} a pool that shares its cache",
        )
    facts = await remote_facts(remote, work.spec.role, web)
    return outcome_of(container_path(digest, count), facts.model_copy(update={"digest": digest}))
