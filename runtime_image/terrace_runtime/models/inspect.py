"""Facts of one model file, read in a child process that cannot outgrow its limits.

Owns: the child's wall-clock bound, what its death means, and the file's digest. Does not own: the
parsing and the memory limits (``inspect_child``). Next: ``fetch``.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from terrace_runtime.contract import FetchOutcome, ModelFacts
from terrace_runtime.models.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from terrace_runtime.contract import AnyFacts, FileRole

WALL_SECONDS: Final = 120.0
_CHUNK: Final = 2**20
_MAX_OUTPUT: Final = 2**20


@dataclass(frozen=True)
class HeaderFile:
    """A file whose header is read; of a remote one, the first bytes are here."""

    path: Path
    size: int = 0
    """Of the whole file; 0: as large as it is here."""


def inspect_file(
    path: Path, digest: str | None = None, on_bytes: Callable[[int], None] = lambda _: None
) -> ModelFacts:
    """Facts of the model at ``path``; raises FetchError.

    ``digest`` is given when the caller has hashed the file already. ``on_bytes`` hears how many
    bytes are hashed.
    """
    header_facts = read_facts(path)
    digest = digest or file_digest(path, on_bytes)
    return header_facts.model_copy(update={"digest": digest})


def read_facts(
    path: Path, wall_s: float = WALL_SECONDS, *, more: Sequence[Path] = ()
) -> ModelFacts:
    """Facts of a whole model; the digest in the result is all zeros.

    ``more`` are the further parts of a split model, in order.
    """
    facts = read_headers([HeaderFile(file) for file in (path, *more)], "model", wall_s)
    assert isinstance(facts, ModelFacts)
    return facts


def read_headers(
    files: Sequence[HeaderFile], role: FileRole, wall_s: float = WALL_SECONDS
) -> AnyFacts:
    """One bounded pass over the headers of all parts, in a child; the digest is all zeros.

    Raises FetchError. A projector has ProjectorFacts, an adapter FileFacts.
    """
    names = [f"{file.size}:{os.fspath(file.path)}" for file in files]
    command = [sys.executable, "-m", "terrace_runtime.models.inspect_child", role, *names]
    try:
        child = subprocess.run(  # noqa: S603 - our own interpreter and module
            command, capture_output=True, timeout=wall_s, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise FetchError(
            "InvalidModel", f"reading the GGUF header took longer than {wall_s:g} s"
        ) from None
    if child.returncode != 0:
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"code {child.returncode}"
        last = child.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        raise FetchError(
            "InvalidModel",
            f"reading the GGUF header broke its limits (child ended by {how}) {last}",
        )
    try:
        outcome = FetchOutcome.model_validate_json(child.stdout[:_MAX_OUTPUT])
    except ValidationError as error:
        raise FetchError("InvalidModel", "the header reader gave no facts") from error
    if outcome.failure is not None:
        raise FetchError(
            outcome.failure.reason, outcome.failure.message, permanent=outcome.failure.permanent
        )
    found = {"adapter": outcome.file, "projector": outcome.projector}
    facts = found.get(role, outcome.facts)
    assert facts is not None
    return facts


def file_digest(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """The file's sha256 in hex, read in pieces; ``on_bytes`` hears the bytes done so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            done += len(piece)
            on_bytes(done)
    return digest.hexdigest()
