"""From a FetchSpec to a FetchOutcome: get the model file, prove it, read its facts.

Owns: which way a source goes: used in place, only looked at, known already, copied or downloaded.
Does not own: the ways themselves (``proof``, ``look``, ``work``, ``filling``) or exit codes
(``__main__``). Runs in a Job, or in a replica that has a volume of its own; several may run for one
content, then one downloads and the others wait.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from terrace_runtime.contract import MODEL_SOURCE_DIR, FetchOutcome, pod_path
from terrace_runtime.models.addresses import AddressRule
from terrace_runtime.models.cache import ModelCache
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.filling import Filling
from terrace_runtime.models.inspect_source import DEMO_DIR
from terrace_runtime.models.look import look_at_copy, look_at_remote
from terrace_runtime.models.proof import facts_of_files
from terrace_runtime.models.resolve import resolve
from terrace_runtime.models.secrets import Secrets, read_secrets
from terrace_runtime.models.sources import DemoSource, MountedSource, parse_source
from terrace_runtime.models.split import part_paths
from terrace_runtime.models.web import open_web
from terrace_runtime.models.work import Work, known_outcome, outcome_of, proof_of

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.contract import AnyFacts
    from terrace_runtime.models.sources import RemoteSource


async def fetch(work: Work) -> FetchOutcome:
    """Make a model usable and say where it is, or why it is not; never raises FetchError."""
    secrets = Secrets()
    try:
        source = parse_source(work.spec)
        if isinstance(source, MountedSource):
            facts = await asyncio.to_thread(_in_place, source, work)
            return outcome_of(f"{MODEL_SOURCE_DIR}/{source.path}", facts)
        cache = None if work.spec.look_only else ModelCache(work.spec)
        known = await known_outcome(work, cache) if cache else None
        if known is not None:
            return known
        if isinstance(source, DemoSource):
            path = _demo(source)
            if cache is None:
                return await look_at_copy(work, path)
            return await Filling(work, cache, path, None).run()
        secrets = read_secrets(work.spec.secret_dir)
        return await _fetch_remote(source, work, cache, secrets)
    except FetchError as error:
        return FetchOutcome(failure=error.failure(secrets.hide))


def _in_place(source: MountedSource, work: Work) -> AnyFacts:
    """Facts of a file that is mounted; nothing is copied."""
    root = pod_path(MODEL_SOURCE_DIR).resolve()
    paths = [_inside(root, part, source.place) for part in part_paths(source.path)]
    return facts_of_files(paths, proof_of(work, len(paths)), work.reporter)


def _inside(root: Path, name: str, place: str) -> Path:
    try:
        path = (root / name).resolve(strict=True)
    except (OSError, RuntimeError):
        raise FetchError("NotFound", f"{place} holds no file {name}") from None
    if not path.is_relative_to(root):
        raise FetchError("NotFound", f"{name} is a link that leads out of {place}")
    if not path.is_file():
        raise FetchError("NotFound", f"{name} in {place} is not a file")
    return path


def _demo(source: DemoSource) -> Path:
    path = DEMO_DIR / f"{source.name}.gguf"
    if not path.is_file():
        names = ", ".join(sorted(found.stem for found in DEMO_DIR.glob("*.gguf")))
        raise FetchError("NotFound", f"no demo model {source.name!r}; there are: {names}")
    return path


async def _fetch_remote(
    source: RemoteSource, work: Work, cache: ModelCache | None, secrets: Secrets
) -> FetchOutcome:
    rule = AddressRule(work.spec.allowed_networks)
    async with open_web(rule, work.limits, secrets.get("ca.crt")) as web:
        remote = await resolve(source, work.spec, web, secrets)
        told, wanted = remote.files[0].sha256, work.spec.sha256
        if told is not None and wanted not in {None, told}:
            raise FetchError(
                "ChecksumMismatch",
                f"the source says that the file's sha256 is {told}; source.sha256 says {wanted}",
            )
        if cache is None:
            return await look_at_remote(work, remote, web)
        return await Filling(work, cache, remote, web).run()
