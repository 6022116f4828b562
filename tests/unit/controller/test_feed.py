"""kopf is used to watch and for nothing else."""

from __future__ import annotations

import kopf

from terrace.controller.cluster import Connection
from terrace.controller.feed import NoDiffBase, make_registry, make_settings
from terrace.controller.kinds import LABELLED_KINDS, WATCHED_KINDS, Kind, Manifest


async def connect() -> Connection:
    return Connection("https://host", "/ca", None, None, "token")


def ignore(kind: Kind, manifest: Manifest, *, is_deleted: bool = False) -> None:
    pass


def test_the_registry_holds_event_handlers_and_a_login_alone() -> None:
    registry = make_registry(ignore, connect)
    watching = list(registry._watching.get_all_handlers())
    assert sorted(handler.id for handler in watching) == sorted(k.plural for k in WATCHED_KINDS)
    for others in (registry._indexing, registry._spawning, registry._changing, registry._webhooks):
        assert list(others.get_all_handlers()) == []
    activities = [handler.activity for handler in registry._activities.get_all_handlers()]
    assert [activity.value for activity in activities] == ["authentication"]


def test_kopf_is_told_to_write_nothing() -> None:
    settings = make_settings()
    assert settings.scanning.disabled
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert settings.persistence.finalizer.startswith("feed.terrace.dev/")
    assert isinstance(settings.persistence.diffbase_storage, NoDiffBase)
    assert settings.persistence.diffbase_storage.build(body={"spec": 1}) == {}


def test_children_and_pods_are_filtered_by_the_server_and_nothing_else_is() -> None:
    selectors = make_settings().watching.label_selectors
    for kind in WATCHED_KINDS:
        group, _, version = kind.api_version.rpartition("/")
        resource = kopf.Resource(
            group=group, version=version, plural=kind.plural, namespaced=True, kind=kind.kind
        )
        matching = [value for key, value in selectors.items() if key.check(resource)]
        wanted = ["app.kubernetes.io/managed-by=terrace"] if kind in LABELLED_KINDS else []
        assert matching == wanted, kind


async def test_events_reach_the_controller_as_plain_objects() -> None:
    seen: list[tuple[str, str, bool]] = []

    def see(kind: Kind, manifest: Manifest, *, is_deleted: bool = False) -> None:
        seen.append((kind.kind, manifest["metadata"]["name"], is_deleted))

    handlers = {h.id: h for h in make_registry(see, connect)._watching.get_all_handlers()}
    for event_type in (None, "MODIFIED", "DELETED"):
        event = {"type": event_type, "object": {"metadata": {"name": "a"}}}
        await handlers["jobs"].fn(event=event, body={})
    assert seen == [("Job", "a", False), ("Job", "a", False), ("Job", "a", True)]
