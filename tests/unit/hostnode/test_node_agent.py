"""The agent against an API server that forgets, fails and hangs up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from support.gateway import until
from support.host_pods import IMAGES, container, pod
from support.node_api import NodeApi, serving
from terrace.local import event_recorder
from terrace.local.event_recorder import EventRecorder
from terrace.local.node_client import ApiError, Change, NodeClient
from terrace.local.node_pods import NodePods
from terrace.local.pods.addresses import AddressPool
from terrace.local.pods.context import Settings
from terrace.local.pods.ports import StaticSources
from terrace.local.provisioner import Provisioner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PODS = "/api/v1/namespaces/default/pods"
Json = dict[str, Any]


@pytest.fixture
def api() -> NodeApi:
    return NodeApi()


@pytest_asyncio.fixture
async def client(api: NodeApi) -> AsyncIterator[NodeClient]:
    async for one in serving(api):
        yield one


class Watching:
    """Collects the changes of a watch in the background."""

    def __init__(self, client: NodeClient) -> None:
        self.changes: list[Change] = []
        self.troubles: list[str] = []
        self.task = asyncio.create_task(self._collect(client))

    async def _collect(self, client: NodeClient) -> None:
        async for change in client.list_and_watch("/api/v1/pods", self.troubles.append):
            self.changes.append(change)

    def told(self, kind: str) -> list[str]:
        return [change.object["metadata"]["uid"] for change in self.changes if change.kind == kind]


async def test_a_list_then_a_watch_tell_everything_once(api: NodeApi, client: NodeClient) -> None:
    api.put(f"{PODS}/a", {})
    watching = Watching(client)
    await until(lambda: api.watched_from)
    api.put(f"{PODS}/b", {})
    await until(lambda: watching.told("CHANGED") == ["a", "b"])
    api.drop(f"{PODS}/a")
    await until(lambda: watching.told("DELETED") == ["a"])
    watching.task.cancel()


async def test_a_cut_watch_goes_on_where_it_was(api: NodeApi, client: NodeClient) -> None:
    watching = Watching(client)
    await until(lambda: len(api.watched_from) == 1)
    api.put(f"{PODS}/a", {})
    await until(lambda: watching.told("CHANGED") == ["a"])
    seen = str(api.version)
    api.cut()
    await until(lambda: len(api.watched_from) == 2)
    assert api.watched_from[1] == seen
    watching.task.cancel()


async def test_a_deletion_missed_by_an_expired_watch_is_told_after_the_next_list(
    api: NodeApi, client: NodeClient
) -> None:
    api.put(f"{PODS}/kept", {})
    api.put(f"{PODS}/gone", {})
    watching = Watching(client)
    await until(lambda: api.watched_from)
    api.drop(f"{PODS}/gone", is_told=False)
    api.tell("ERROR", {"code": 410, "message": "too old resource version"})
    await until(lambda: watching.told("DELETED") == ["gone"])
    assert watching.told("CHANGED") == ["kept", "gone"]
    watching.task.cancel()


async def test_a_failing_server_is_asked_again(api: NodeApi, client: NodeClient) -> None:
    api.faults["GET"] = [500, 429]
    watching = Watching(client)
    await until(lambda: api.watched_from)
    assert watching.troubles == ["list /api/v1/pods: fault 500", "list /api/v1/pods: fault 429"]
    watching.task.cancel()


async def test_an_error_carries_the_servers_words(api: NodeApi, client: NodeClient) -> None:
    with pytest.raises(ApiError, match="not found") as raised:
        await client.get("/api/v1/nodes/none")
    assert raised.value.status == 404
    assert await client.find("/api/v1/nodes/none") is None


def node_pods(client: NodeClient, folder: Path) -> NodePods:
    settings = Settings(folder=folder, images=lambda: IMAGES, backoff_base_s=0.05)
    addresses = AddressPool.parse("127.14.1.0-127.14.1.9")
    return NodePods(client, settings, StaticSources(), EventRecorder(client, "n"), addresses)


def statuses(api: NodeApi, name: str) -> list[Json]:
    path = f"{PODS}/{name}/status"
    return [body["status"] for found, body in api.of("PATCH") if found == path]


def is_ready(status: Json) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in status["conditions"])


async def test_a_pod_is_run_reported_and_deleted_by_its_uid(
    api: NodeApi, client: NodeClient, tmp_path: Path
) -> None:
    pods = node_pods(client, tmp_path)
    script = 'trap "exit 0" TERM; touch "$TERRACE_POD_ROOT/tmp/up"; while :; do sleep 0.02; done'
    is_up = {"command": ["/bin/sh", "-c", 'test -e "$TERRACE_POD_ROOT/tmp/up"']}
    probe = {"exec": is_up, "periodSeconds": 0.05, "failureThreshold": 10_000}
    manifest = pod(container(script, startupProbe=probe))
    name, uid = manifest["metadata"]["name"], manifest["metadata"]["uid"]
    path = f"{PODS}/{name}"
    api.put(path, manifest)
    following = asyncio.create_task(pods.follow("n"))
    await until(lambda: [one for one in statuses(api, name) if is_ready(one)])
    patch = api.of("PATCH")[-1][1]
    assert patch["metadata"] == {"uid": uid}
    assert patch["status"]["podIPs"] == [{"$patch": "replace"}, {"ip": "127.14.1.0"}]
    deleting = {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 60}
    api.put(path, {**manifest, "metadata": {**manifest["metadata"], **deleting}})
    await until(lambda: path not in api.objects)
    assert api.of("DELETE") == [(path, {"preconditions": {"uid": uid}, "gracePeriodSeconds": 0})]
    assert statuses(api, name)[-1]["phase"] == "Succeeded"
    await until(lambda: not pods.work)
    assert not list((tmp_path / "pods").iterdir())
    following.cancel()


async def test_a_refused_status_is_written_again(
    api: NodeApi, client: NodeClient, tmp_path: Path
) -> None:
    pods = node_pods(client, tmp_path)
    manifest = pod(container("true"))
    api.faults["PATCH"] = [500]
    api.put(f"{PODS}/{manifest['metadata']['name']}", manifest)
    following = asyncio.create_task(pods.follow("n"))
    name = manifest["metadata"]["name"]
    await until(lambda: [one["phase"] for one in statuses(api, name)][-1:] == ["Succeeded"])
    following.cancel()
    await pods.stop_all(0.0)


async def running_until_told(
    api: NodeApi, client: NodeClient, tmp_path: Path
) -> tuple[NodePods, str, asyncio.Task[None]]:
    """A node, a pod of it that runs until ``tmp_path / "end"`` is there, and who follows it."""
    pods = node_pods(client, tmp_path)
    manifest = pod(container(f"while ! test -e {tmp_path}/end; do sleep 0.02; done"))
    name = manifest["metadata"]["name"]
    api.put(f"{PODS}/{name}", manifest)
    following = asyncio.create_task(pods.follow("n"))
    await until(lambda: "Running" in [one["phase"] for one in statuses(api, name)])
    return pods, name, following


async def test_the_last_status_of_a_busy_pod_is_written(
    api: NodeApi, client: NodeClient, tmp_path: Path
) -> None:
    pods, name, following = await running_until_told(api, client, tmp_path)
    api.faults["PATCH"] = [409, 409, 409]  # Others write to it as well: each of them was faster.
    (tmp_path / "end").touch()
    await until(lambda: [one["phase"] for one in statuses(api, name)][-1:] == ["Succeeded"])
    following.cancel()
    await pods.stop_all(0.0)


async def test_a_status_is_not_forced_on_another_pod_of_the_name(
    api: NodeApi, client: NodeClient, tmp_path: Path
) -> None:
    pods, name, following = await running_until_told(api, client, tmp_path)
    api.objects[f"{PODS}/{name}"]["metadata"]["uid"] = "another"
    api.faults["PATCH"] = [409] * 100
    (tmp_path / "end").touch()
    (work,) = pods.work.values()
    await until(lambda: work.running is not None and work.running.done())
    await asyncio.wait_for(pods.stop_all(0.0), 30)
    assert len(api.faults["PATCH"]) > 90, "it was tried again and again"
    following.cancel()


async def test_a_pod_removed_by_force_is_ended_and_its_folders_go(
    api: NodeApi, client: NodeClient, tmp_path: Path
) -> None:
    pods = node_pods(client, tmp_path)
    manifest = pod(container())
    path = f"{PODS}/{manifest['metadata']['name']}"
    api.put(path, manifest)
    following = asyncio.create_task(pods.follow("n"))
    await until(lambda: "Running" in [one["phase"] for one in statuses(api, path[len(PODS) + 1 :])])
    api.drop(path)
    await until(lambda: not pods.work)
    assert not list((tmp_path / "pods").iterdir())
    assert not list((tmp_path / "logs").iterdir())
    following.cancel()


async def test_an_ending_agent_tells_nothing_so_that_the_next_one_goes_on(
    api: NodeApi, client: NodeClient, tmp_path: Path
) -> None:
    pods = node_pods(client, tmp_path)
    manifest = pod(container())
    name = manifest["metadata"]["name"]
    api.put(f"{PODS}/{name}", manifest)
    following = asyncio.create_task(pods.follow("n"))
    await until(lambda: "Running" in [one["phase"] for one in statuses(api, name)])
    await pods.stop_all(0.0)
    following.cancel()
    assert {one["phase"] for one in statuses(api, name)} == {"Pending", "Running"}


async def test_an_invalid_pod_fails_with_the_reason(
    api: NodeApi, client: NodeClient, tmp_path: Path
) -> None:
    pods = node_pods(client, tmp_path)
    manifest = pod(container(livenessProbe={"grpc": {"port": 1}}))
    name = manifest["metadata"]["name"]
    api.put(f"{PODS}/{name}", manifest)
    following = asyncio.create_task(pods.follow("n"))
    await until(lambda: statuses(api, name))
    (status,) = statuses(api, name)
    assert (status["phase"], status["reason"]) == ("Failed", "HostNodeRefused")
    assert "not grpc" in status["message"]
    following.cancel()
    await pods.stop_all(0.0)


async def test_folders_of_pods_deleted_meanwhile_are_swept(
    api: NodeApi, client: NodeClient, tmp_path: Path
) -> None:
    (tmp_path / "pods" / "old-uid" / "volumes").mkdir(parents=True)
    (tmp_path / "logs" / "default_name_old-uid").mkdir(parents=True)
    pods = node_pods(client, tmp_path)
    following = asyncio.create_task(pods.follow("n"))
    await asyncio.wait_for(pods.has_listed.wait(), 60)
    assert not list((tmp_path / "pods").iterdir())
    assert not list((tmp_path / "logs").iterdir())
    following.cancel()


async def test_a_repeated_event_is_counted_and_not_written_again(
    api: NodeApi, client: NodeClient
) -> None:
    events = EventRecorder(client, "n")
    sending = asyncio.create_task(events.send())
    involved = {"metadata": {"name": "p", "namespace": "default", "uid": "u"}}
    for _ in range(3):
        events.record(involved, "Warning", "BackOff", "again")
    events.record(involved, "Normal", "Started", "x" * 5000)
    await until(lambda: len(api.of("POST")) == 2)
    first, second = (body for _, body in api.of("POST"))
    assert (first["reason"], first["count"], first["type"]) == ("BackOff", 1, "Warning")
    assert first["involvedObject"]["uid"] == "u"
    assert len(second["message"]) == 1024
    assert api.of("PATCH") == []
    sending.cancel()


async def test_a_full_queue_of_events_drops_and_does_not_block(client: NodeClient) -> None:
    events = EventRecorder(client, "n")
    involved = {"metadata": {"name": "p", "namespace": "default", "uid": "u"}}
    for number in range(event_recorder._MAX_WAITING + 50):
        events.record(involved, "Normal", "Many", str(number))
    assert events._waiting.full()


def released(path: Path, name: str) -> Json:
    return {
        "metadata": {
            "name": name,
            "annotations": {"pv.kubernetes.io/provisioned-by": "terrace.dev/local"},
        },
        "spec": {"persistentVolumeReclaimPolicy": "Delete", "local": {"path": str(path)}},
        "status": {"phase": "Released"},
    }


async def test_what_fails_for_now_is_tried_again(
    api: NodeApi, client: NodeClient, tmp_path: Path
) -> None:
    name = "pvc-00000000-0000-0000-0000-000000000001"
    (tmp_path / name).mkdir()
    api.put(f"/api/v1/persistentvolumes/{name}", released(tmp_path / name, name))
    api.faults["DELETE"] = [500, 503]
    provisioner = Provisioner(client, EventRecorder(client, "n"), "n", tmp_path, retry_s=0.01)
    serving_task = asyncio.create_task(provisioner.serve())
    await until(lambda: api.of("DELETE"))
    assert not (tmp_path / name).exists()
    assert api.faults["DELETE"] == []
    serving_task.cancel()


async def test_only_folders_of_our_own_volumes_are_deleted(
    api: NodeApi, client: NodeClient, tmp_path: Path
) -> None:
    folder, precious = tmp_path / "volumes", tmp_path / "precious"
    ours = "pvc-00000000-0000-0000-0000-000000000001"
    lying = "pvc-00000000-0000-0000-0000-000000000002"
    retained = "pvc-00000000-0000-0000-0000-000000000003"
    for path in (folder / ours, folder / retained, precious):
        path.mkdir(parents=True)
    kept = released(folder / retained, retained)
    kept["spec"]["persistentVolumeReclaimPolicy"] = "Retain"
    api.put(f"/api/v1/persistentvolumes/{lying}", released(precious, lying))
    api.put(f"/api/v1/persistentvolumes/{retained}", kept)
    api.put(f"/api/v1/persistentvolumes/{ours}", released(folder / ours, ours))
    provisioner = Provisioner(client, EventRecorder(client, "n"), "n", folder)
    serving_task = asyncio.create_task(provisioner.serve())
    await until(lambda: api.of("DELETE"))
    assert [path.rpartition("/")[2] for path, _ in api.of("DELETE")] == [ours]
    assert not (folder / ours).exists()
    assert precious.exists()
    assert (folder / retained).exists()
    serving_task.cancel()
