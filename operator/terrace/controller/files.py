"""The files a model consists of beside its own, and where fetching each of them stands.

Owns: projector, draft and adapters as a list of things to fetch, their Jobs' names, what status
keeps of them. Does not own: judging one Job (``facts.py``), the Job itself (``jobs.py``). Pure.
Next: ``reconcile.py`` waits until all of them are known, ``placing.py`` plans with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from terrace.api import names
from terrace.api.file_status import AdapterStatus, ModelStatus, ProjectorStatus
from terrace.controller.drift import digest_of
from terrace.controller.facts import (
    AnyFetch,
    Fetch,
    KnownFile,
    KnownModel,
    KnownProjector,
    known_file,
    known_model,
    known_projector,
    model_status,
    persisted_model,
    persisted_projector,
    projector_status,
    read_fetch,
)
from terrace_runtime.contract import FileFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from terrace.api.model import Adapter, File, ModelSpec
    from terrace.controller.kinds import Manifest
    from terrace_runtime.contract import FileRole, ModelFacts, ProjectorFacts


@dataclass(frozen=True, slots=True)
class ExtraFile:
    """A file that a model's spec names beside the model itself."""

    role: FileRole
    source: File
    job: str
    """Name of the Job that fetches it; one source has one Job, whoever names it."""
    title: str
    """As messages call it."""


@dataclass(frozen=True, slots=True)
class Projector:
    """The projector and its fetch."""

    file: ExtraFile
    fetch: Fetch[KnownProjector]


@dataclass(frozen=True, slots=True)
class Draft:
    """The draft model and its fetch."""

    file: ExtraFile
    fetch: Fetch[KnownModel]


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter and its fetch."""

    file: ExtraFile
    fetch: Fetch[KnownFile]
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Extras:
    """All files of a model but its own."""

    draft: Draft | None = None
    adapters: tuple[AdapterFile, ...] = ()
    projector: Projector | None = None

    @property
    def fetches(self) -> list[tuple[ExtraFile, AnyFetch]]:
        """Every file with its fetch; one source only once."""
        every = (self.projector, self.draft, *self.adapters)
        first: dict[str, tuple[ExtraFile, AnyFetch]] = {}
        for each in every:
            if each is not None:
                first.setdefault(each.file.job, (each.file, each.fetch))
        return list(first.values())

    @property
    def projector_facts(self) -> ProjectorFacts | None:
        """Of the projector, once it is in place."""
        known = self.projector.fetch.known if self.projector else None
        return known.facts if known else None

    @property
    def draft_facts(self) -> ModelFacts | None:
        """Of the draft, once it is in place."""
        known = self.draft.fetch.known if self.draft else None
        return known.facts if known else None

    @property
    def adapter_facts(self) -> list[FileFacts]:
        """Of the adapters that are in place, one for each name."""
        known = (each.fetch.known for each in self.adapters)
        return [found.facts for found in known if found is not None]

    @property
    def are_known(self) -> bool:
        """Whether all of them are in place."""
        return all(fetch.known is not None for _, fetch in self.fetches)


def extra_files(model: str, spec: ModelSpec) -> list[ExtraFile]:
    """What is to be fetched beside the model; each source once."""
    first: dict[str, ExtraFile] = {}
    if spec.projector is not None:
        projector = _file(model, "projector", spec.projector, "the projector")
        first[projector.job] = projector
    if spec.draft is not None:
        draft = _file(model, "draft", spec.draft, "the draft")
        first[draft.job] = draft
    for adapter in spec.adapters:
        file = _adapter_file(model, adapter)
        first.setdefault(file.job, file)
    return list(first.values())


def read_extras(
    model: Manifest,
    spec: ModelSpec,
    jobs: dict[str, Manifest],
    all_pods: list[Manifest],
    now: datetime,
    retry_s: float,
    claim_for: Callable[[str], str] = lambda _uri: "",
) -> Extras:
    """Judge the Jobs of projector, draft and adapters, and what status holds of them.

    ``jobs``: by name. ``claim_for``: the claim that a source's file is to lie on.
    """
    name, stored = model["metadata"]["name"], model.get("status") or {}
    projector = draft = None
    if spec.projector is not None:
        file = _file(name, "projector", spec.projector, "the projector")
        here = _persisted_projector(stored, spec.projector)
        job, claim = jobs.get(file.job), claim_for(spec.projector.uri)
        projector = Projector(
            file, read_fetch(job, all_pods, here, known_projector, now, retry_s, claim)
        )
    if spec.draft is not None:
        file = _file(name, "draft", spec.draft, "the draft")
        before = _persisted_draft(stored, spec.draft)
        job = jobs.get(file.job)
        claim = claim_for(spec.draft.uri)
        draft = Draft(file, read_fetch(job, all_pods, before, known_model, now, retry_s, claim))
    adapters = []
    for adapter in spec.adapters:
        file = _adapter_file(name, adapter)
        held = _persisted_adapter(stored, adapter.source)
        job, claim = jobs.get(file.job), claim_for(adapter.source.uri)
        fetch = read_fetch(job, all_pods, held, known_file, now, retry_s, claim)
        adapters.append(AdapterFile(file, fetch, adapter))
    return Extras(draft, tuple(adapters), projector)


def stored_projector(extras: Extras) -> ProjectorStatus | None:
    """What status.projector keeps."""
    projector = extras.projector
    if projector is None or projector.fetch.known is None:
        return None
    return projector_status(projector.fetch.known, projector.file.source.uri)


def draft_status(extras: Extras) -> ModelStatus | None:
    """What status.draft keeps."""
    draft = extras.draft
    if draft is None or draft.fetch.known is None:
        return None
    return model_status(draft.fetch.known, draft.file.source.uri)


def adapter_statuses(extras: Extras) -> list[AdapterStatus]:
    """What status.adapters keeps: those that are in place."""
    return [
        AdapterStatus(
            name=each.adapter.name,
            path=each.fetch.known.path,
            claim=each.fetch.known.claim,
            digest=each.fetch.known.facts.digest,
            file_bytes=each.fetch.known.facts.file_bytes,
            uri=each.file.source.uri,
        )
        for each in extras.adapters
        if each.fetch.known is not None
    ]


def _file(model: str, role: FileRole, source: File, title: str) -> ExtraFile:
    # Who may read it is no part of what it is: another secret is no other file.
    identity = {"role": role, "uri": source.uri, "sha256": source.sha256}
    return ExtraFile(role, source, names.fetch_job_name(model, digest_of(identity)), title)


def _adapter_file(model: str, adapter: Adapter) -> ExtraFile:
    return _file(model, "adapter", adapter.source, f"adapter {adapter.name}")


def _persisted_draft(stored: Manifest, source: File) -> KnownModel | None:
    draft = stored.get("draft") or {}
    if not _is_of(draft, source):
        return None
    return persisted_model(draft)


def _persisted_projector(stored: Manifest, source: File) -> KnownProjector | None:
    projector = stored.get("projector") or {}
    return persisted_projector(projector) if _is_of(projector, source) else None


def _persisted_adapter(stored: Manifest, source: File) -> KnownFile | None:
    for entry in _adapters(stored.get("adapters") or ()):
        if _is_of({"uri": entry.uri, "digest": entry.digest}, source):
            facts = FileFacts(digest=entry.digest, file_bytes=entry.file_bytes)
            return KnownFile(facts, entry.path, entry.claim)
    return None


def _adapters(stored: Iterable[object]) -> list[AdapterStatus]:
    try:
        return [AdapterStatus.model_validate(entry) for entry in stored]
    except ValidationError:
        return []  # Of a version we cannot read: fetched again, out of the cache.


def _is_of(entry: Manifest, source: File) -> bool:
    return entry.get("uri") == source.uri and source.sha256 in (None, entry.get("digest"))
