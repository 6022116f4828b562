"""Fetching in tests: quick limits, headers read without a child, what is in the cache."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from terrace_runtime.models.facts import facts_of
from terrace_runtime.models.fetch import fetch
from terrace_runtime.models.gguf_header import read_header
from terrace_runtime.models.lora import adapter_facts
from terrace_runtime.models.progress import ProgressReporter
from terrace_runtime.models.projector import projector_facts
from terrace_runtime.models.web import DownloadLimits
from terrace_runtime.models.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from terrace_runtime.contract import (
        AnyFacts,
        FetchFailure,
        FetchOutcome,
        FetchSpec,
        FileRole,
    )

LOOPBACK = ("127.0.0.0/8",)
QUICK = DownloadLimits(attempts=3, wait_s=0.001, read_timeout_s=5)


def read_here(paths: Sequence[Path], role: FileRole) -> AnyFacts:
    """Facts without a child process."""
    headers = []
    for path in paths:
        with path.open("rb") as file:
            headers.append(read_header(file, path.stat().st_size))
    if role == "projector":
        return projector_facts(headers, "0" * 64)
    return (adapter_facts if role == "adapter" else facts_of)(headers, "0" * 64)


async def get(spec: FetchSpec, limits: DownloadLimits = QUICK, **more: Any) -> FetchOutcome:
    """One fetch."""
    reporter = ProgressReporter(lambda _: None)
    return await fetch(Work(spec, reporter, limits, read_here, poll_s=0.02, **more))


def failure(outcome: FetchOutcome) -> FetchFailure:
    """Of a fetch that must have failed."""
    assert outcome.facts is None
    assert outcome.file is None
    assert outcome.projector is None
    assert outcome.failure is not None
    return outcome.failure


def stored(pod: Path, outcome: FetchOutcome) -> bytes:
    """The file that an outcome names."""
    assert outcome.failure is None, outcome.failure
    return (pod / outcome.path.lstrip("/")).read_bytes()


def leftovers(pod: Path) -> list[str]:
    """What unfinished downloads left behind."""
    return sorted(path.name for path in (pod / "models" / "partial").iterdir())


def sha(content: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(content).hexdigest()
