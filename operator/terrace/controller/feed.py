"""Feeds watch events to the controller. kopf does this and nothing else for us.

Owns: which kinds are watched, with which selectors, and every setting that keeps kopf from writing
anything: ``on.event`` handlers only, no finalizers, no annotations, no events of its own. Does not
own: what an event means. Next: ``Controller.see``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import kopf
from kopf._core.reactor.inventory import ResourceMemories

from terrace.api import names
from terrace.controller.controller import SELECTOR
from terrace.controller.kinds import LABELLED_KINDS, WATCHED_KINDS, Kind, Manifest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from terrace.controller.cluster import Connection

PREFIX = f"feed.{names.GROUP}"
PAGE_SIZE = 250
SERVER_TIMEOUT_S = 300
"""Whole seconds: the API server refuses 300.0."""
CONNECT_TIMEOUT_S = 10.0
IDLE_S = 1.0
"""How long kopf keeps a task and a queue for an object after its last event (5 by default)."""


class See(Protocol):
    """Where events go."""

    def __call__(self, kind: Kind, manifest: Manifest, *, is_deleted: bool = False) -> None:
        """Take one event; must be quick and must not raise."""
        ...


class NoDiffBase(kopf.DiffBaseStorage):  # type: ignore[misc]  # kopf is untyped to us
    """Keeps nothing: without change handlers there is no difference to compute or store."""

    def build(self, **_: Any) -> Any:
        """An empty essence, instead of a deep copy of every object."""
        return {}

    def fetch(self, **_: Any) -> None:
        """Nothing was stored."""

    def store(self, **_: Any) -> None:
        """Nothing is stored."""


class NoMemories(ResourceMemories):  # type: ignore[misc]  # kopf is untyped to us
    """Remembers no object: event handlers need nothing of what kopf keeps about each (1 kB)."""

    async def recall(self, raw_body: Any, **options: Any) -> Any:
        """A fresh memory, which ends with the event."""
        return await super().recall(raw_body, **{**options, "ephemeral": True})


def make_settings() -> kopf.OperatorSettings:
    """Settings under which kopf only reads."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.persistence.finalizer = f"{PREFIX}/never-set"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=PREFIX)
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.queueing.idle_timeout = IDLE_S
    settings.watching.server_timeout = SERVER_TIMEOUT_S
    settings.watching.connect_timeout = CONNECT_TIMEOUT_S
    settings.watching.chunk_size = PAGE_SIZE
    for kind in LABELLED_KINDS:
        group, _, version = kind.api_version.rpartition("/")
        settings.watching.label_selectors[group, version, kind.plural] = SELECTOR
    return settings


def make_registry(see: See, connect: Callable[[], Awaitable[Connection]]) -> kopf.OperatorRegistry:
    """A login, and one event handler for each watched kind."""
    registry = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        connection = await connect()
        return kopf.ConnectionInfo(
            server=connection.server,
            ca_path=connection.ca_path,
            certificate_path=connection.certificate_path,
            private_key_path=connection.key_path,
            scheme="Bearer" if connection.token else None,
            token=connection.token,
            proxy_url=connection.proxy,
        )

    kopf.on.login(registry=registry)(login)
    for kind in WATCHED_KINDS:
        group, _, version = kind.api_version.rpartition("/")
        kopf.on.event(group, version, kind.plural, id=kind.plural, registry=registry)(
            _handler(kind, see)
        )
    return registry


async def run_feed(
    see: See,
    connect: Callable[[], Awaitable[Connection]],
    namespaces: tuple[str | None, ...],
    started: asyncio.Event,
) -> None:
    """Watch until cancelled; ends early only if kopf fails or takes a signal.

    ``started`` is set once kopf has put its own signal handlers in place.
    """
    scope = [namespace for namespace in namespaces if namespace is not None]
    await kopf.operator(
        registry=make_registry(see, connect),
        settings=make_settings(),
        memories=NoMemories(),
        clusterwide=not scope,
        namespaces=scope,
        ready_flag=started,
    )


def _handler(kind: Kind, see: See) -> Callable[..., Awaitable[None]]:
    async def handle(event: Any, **_: Any) -> None:
        see(kind, dict(event["object"]), is_deleted=event["type"] == "DELETED")

    return handle
