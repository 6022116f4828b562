"""One fetch as a value: what is wanted, the means to it, and what an answer looks like.

Owns: Work. Does not own: the steps (``fetch``, ``filling``).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from terrace_runtime.contract import FetchOutcome, ModelFacts, ProjectorFacts
from terrace_runtime.models.cache import container_path
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.proof import Proof, ReadHeaders, read_all_headers
from terrace_runtime.models.web import DownloadLimits

if TYPE_CHECKING:
    from terrace_runtime.contract import AnyFacts, FetchSpec
    from terrace_runtime.models.cache import ModelCache
    from terrace_runtime.models.progress import ProgressReporter
    from terrace_runtime.models.remote import Remote


@dataclass(frozen=True)
class Work:
    """One fetch: what is wanted, and the means to it."""

    spec: FetchSpec
    reporter: ProgressReporter
    limits: DownloadLimits = field(default_factory=DownloadLimits)
    read_headers: ReadHeaders = read_all_headers
    """Reads headers in a child; tests of other things read them without one."""
    poll_s: float = 1.0
    """Between two looks whether another Job is done."""
    peek_from_bytes: int = 256 * 2**20
    """Of a larger file the header is read before the rest is fetched."""


async def known_outcome(work: Work, cache: ModelCache) -> FetchOutcome | None:
    """The outcome of a source that was fetched before; headers are cheap to read once more."""
    entry = cache.entry()
    if entry is None:
        return None
    paths = cache.blob_paths(entry.digest, len(entry.part_digests))
    try:
        facts = await asyncio.to_thread(work.read_headers, paths, work.spec.role)
    except (FetchError, OSError):
        return None  # Deleted under our eyes, or refused by a newer reader: fetching says which.
    facts = facts.model_copy(update={"digest": entry.digest})
    return outcome_of(container_path(entry.digest, len(paths)), facts)


def proof_of(work: Work, count: int, remote: Remote | None = None) -> Proof:
    """What ``count`` files must be, by the user's word and the source's."""
    wanted: list[str | None] = [file.sha256 for file in remote.files] if remote else [None] * count
    return Proof(work.spec.role, work.spec.sha256, wanted, work.read_headers)


def outcome_of(path: str, facts: AnyFacts) -> FetchOutcome:
    """A success; ``path`` as replicas see it."""
    if isinstance(facts, ModelFacts):
        return FetchOutcome(path=path, facts=facts)
    if isinstance(facts, ProjectorFacts):
        return FetchOutcome(path=path, projector=facts)
    return FetchOutcome(path=path, file=facts)
