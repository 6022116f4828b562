"""Proves files that have arrived: their kind, their headers, their checksums.

Owns: the checks' order, the cheap ones first. Does not own: reading headers (``inspect``) or what
becomes of files that fail (``fetch``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from terrace_runtime.contract import AnyFacts, FileRole
from terrace_runtime.models.content import check_magic
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.inspect import HeaderFile, file_digest, read_headers
from terrace_runtime.models.remote import digest_of

if TYPE_CHECKING:
    from terrace_runtime.models.progress import ProgressReporter
    from terrace_runtime.models.unfinished import Unfinished

ReadHeaders = Callable[[Sequence[Path], FileRole], AnyFacts]


@dataclass
class Proof:
    """What the files must be."""

    role: FileRole
    sha256: str | None
    """What the user says of the first file."""
    part_sha256: Sequence[str | None]
    """What the source says of each."""
    read_headers: ReadHeaders
    digests: list[str] = field(default_factory=list)
    """What each turned out to be, once they were read."""

    def spoilt(self, parts: Sequence[Unfinished]) -> list[Unfinished]:
        """Those of ``parts`` that are not what the source says; empty where it says nothing."""
        wanted = zip(parts, self.digests, self.part_sha256, strict=False)
        return [part for part, found, told in wanted if told not in {None, found}]


def read_all_headers(paths: Sequence[Path], role: FileRole) -> AnyFacts:
    """Facts of the parts at ``paths``, read in a child with limits."""
    return read_headers([HeaderFile(path) for path in paths], role)


def facts_of_files(paths: Sequence[Path], proof: Proof, reporter: ProgressReporter) -> AnyFacts:
    """Facts with the digest of all parts; raises FetchError for files that are not as they must."""
    proof.digests = []
    try:
        size = sum(path.stat().st_size for path in paths)
        for path in paths:
            with path.open("rb") as file:
                check_magic(file.read(512))
        reporter.report("inspect", 0, size)
        facts = proof.read_headers(paths, proof.role)
        proof.digests = _digests(paths, size, reporter)
    except OSError as error:
        raise FetchError(
            "InvalidModel", f"the file cannot be read: {error.strerror}", permanent=False
        ) from error
    if proof.sha256 is not None and proof.digests[0] != proof.sha256:
        what = "file" if len(paths) == 1 else "first part"
        raise FetchError(
            "ChecksumMismatch",
            f"the {what}'s sha256 is {proof.digests[0]}; source.sha256 says {proof.sha256}",
        )
    for path, found, wanted in zip(paths, proof.digests, proof.part_sha256, strict=True):
        if wanted is not None and found != wanted:
            raise FetchError(
                "ChecksumMismatch",
                f"the sha256 of {path.name} is {found}; the source itself says {wanted}",
                # The source is at odds with itself, or bytes were spoilt on their way.
                permanent=False,
            )
    return facts.model_copy(update={"digest": digest_of(proof.digests)})


def _digests(paths: Sequence[Path], size: int, reporter: ProgressReporter) -> list[str]:
    digests, before = list[str](), 0

    def on_bytes(done: int) -> None:
        reporter.report("verify", before + done, size)

    for path in paths:
        digests.append(file_digest(path, on_bytes))
        before += path.stat().st_size
    return digests
