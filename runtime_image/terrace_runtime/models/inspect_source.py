"""``python -m terrace_runtime inspect``: facts of a path or a URI for somebody at a terminal.

Owns: what of the environment counts (HF_ENDPOINT, HF_TOKEN, AWS_*), and that only headers are read.
Does not own: the reading (``inspect``, ``remote_header``). Next: ``__main__`` prints it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from terrace_runtime.contract import FetchOutcome, FetchSpec
from terrace_runtime.models.addresses import AddressRule
from terrace_runtime.models.content import check_magic
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.inspect import HeaderFile, file_digest, read_headers
from terrace_runtime.models.remote import digest_of
from terrace_runtime.models.remote_header import remote_facts
from terrace_runtime.models.resolve import resolve
from terrace_runtime.models.secrets import Secrets
from terrace_runtime.models.sources import DemoSource, MountedSource, parse_source
from terrace_runtime.models.split import part_paths
from terrace_runtime.models.web import DownloadLimits, open_web
from terrace_runtime.models.work import outcome_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace_runtime.contract import AnyFacts, FileRole

DEMO_DIR: Final = Path(__file__).parent.parent / "demo"
_NO_DIGEST: Final = "0" * 64
_AWS_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_MAX_TOKEN_BYTES: Final = 4096
_QUICK: Final = DownloadLimits(attempts=3)
"""Somebody waits at a terminal."""


@dataclass(frozen=True)
class Question:
    """What is to be inspected, and by which means."""

    what: str
    """A path, or a URI that ``parse_source`` takes."""
    role: FileRole = "model"
    with_digest: bool = False
    """Read local files whole for their sha256."""
    allowed_networks: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def secrets(self) -> Secrets:
        """Those of the source's own kind: a token of the hub is for the hub."""
        scheme, get = self.what.partition("://")[0].lower(), self.environment.get
        found: dict[str, str] = {}
        if scheme == "hf":
            found = {"token": get("HF_TOKEN") or _stored_token(self.environment)}
        elif scheme == "s3":
            found = {key: get(key, "") for key in _AWS_KEYS}
        return Secrets({key: value.strip() for key, value in found.items() if value.strip()})

    def networks(self) -> tuple[str, ...]:
        """Private networks that may be reached."""
        listed = self.environment.get("TERRACE_ALLOWED_NETWORKS", "").split(",")
        return (*self.allowed_networks, *(text.strip() for text in listed if text.strip()))


async def inspect_source(question: Question) -> FetchOutcome:
    """Facts, file facts or a failure; never raises FetchError."""
    secrets = Secrets()
    try:
        secrets = question.secrets()
        if "://" not in question.what:
            return outcome_of("", await asyncio.to_thread(_local, Path(question.what), question))
        spec = _spec(question)
        source = parse_source(spec)
        if isinstance(source, MountedSource):
            failure = FetchError("NotFound", f"a file in {source.place} can be read in a pod only")
            return FetchOutcome(failure=failure.failure())
        if isinstance(source, DemoSource):
            path = DEMO_DIR / f"{source.name}.gguf"
            return outcome_of("", await asyncio.to_thread(_local, path, question))
        async with open_web(AddressRule(spec.allowed_networks), _QUICK) as web:
            remote = await resolve(source, spec, web, secrets)
            return outcome_of("", await remote_facts(remote, spec.role, web))
    except FetchError as error:
        return FetchOutcome(failure=error.failure(secrets.hide))


def _local(path: Path, question: Question) -> AnyFacts:
    paths = [Path(name) for name in part_paths(str(path))]
    try:
        with paths[0].open("rb") as file:
            check_magic(file.read(512))
        facts = read_headers([HeaderFile(part) for part in paths], question.role)
        digest = _NO_DIGEST
        if question.with_digest:
            digest = digest_of([file_digest(part) for part in paths])
    except FileNotFoundError as error:
        raise FetchError("NotFound", f"no such file: {error.filename}") from None
    except OSError as error:
        raise FetchError("InvalidModel", f"{path} cannot be read: {error.strerror}") from None
    return facts.model_copy(update={"digest": digest})


def _spec(question: Question) -> FetchSpec:
    get = question.environment.get
    return FetchSpec(
        uri=question.what[:2048],
        role=question.role,
        # A checksum is what http:// needs for a fetch; a look at a header is trusted with nothing.
        sha256=_NO_DIGEST if question.what.startswith("http://") else None,
        hf_endpoint=get("HF_ENDPOINT", ""),
        s3_endpoint=get("AWS_ENDPOINT_URL_S3") or get("AWS_ENDPOINT_URL", ""),
        s3_region=get("AWS_REGION") or get("AWS_DEFAULT_REGION", ""),
        allowed_networks=question.networks(),
    )


def _stored_token(environment: Mapping[str, str]) -> str:
    """The token that ``hf auth login`` stores; empty where nobody is logged in."""
    get = environment.get
    folder = get("HF_HOME") or (f"{get('HOME')}/.cache/huggingface" if get("HOME") else "")
    path = get("HF_TOKEN_PATH") or (f"{folder}/token" if folder else "")
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_TOKEN_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return ""
