"""Writing children: what is ours, what is not, and what must not happen on a stale view."""

from __future__ import annotations

from typing import Any

import pytest

from simulation.controller.fake_cluster import FakeCluster
from terrace.api.names import Key
from terrace.controller.apply import ForeignObjectError, PredecessorError, carry_out, remove
from terrace.controller.cache import Cache
from terrace.controller.diff import Write
from terrace.controller.drift import sealed
from terrace.controller.kinds import CLAIM, POD, SERVICE, STATEFULSET, Manifest, is_deleting
from terrace.controller.port import (
    ConflictError,
    InvalidError,
    Listing,
    NotFoundError,
    UnavailableError,
)

KEY = Key("n", "demo")


def cluster() -> FakeCluster:
    return FakeCluster(lambda: "2026-01-01T00:00:00Z")


def service(owner: str = "me", **spec: Any) -> Manifest:
    owners = [{"kind": "InferenceModel", "name": "demo", "uid": owner, "controller": True}]
    metadata = {"name": "demo", "namespace": "n", "ownerReferences": owners}
    return sealed({"metadata": metadata, "spec": spec})


async def test_an_own_object_that_the_cache_does_not_know_is_applied() -> None:
    fake = cluster()
    fake.put_new(SERVICE, service(port=1))
    await carry_out(fake, Cache(), "me", [Write(SERVICE, service(port=2))])
    assert fake.objects[SERVICE, KEY]["spec"] == {"port": 2}


def of_another_kind() -> Manifest:
    found = service("other")
    found["metadata"]["ownerReferences"][0]["kind"] = "Deployment"
    return found


@pytest.mark.parametrize(
    "theirs", [of_another_kind(), {"metadata": {"name": "demo", "namespace": "n"}}]
)
async def test_a_foreign_object_is_named_and_left_alone(theirs: Manifest) -> None:
    fake = cluster()
    before = fake.put_new(SERVICE, theirs)
    with pytest.raises(ForeignObjectError, match="Service n/demo exists"):
        await carry_out(fake, Cache(), "me", [Write(SERVICE, service())])
    assert fake.objects[SERVICE, KEY] == before


async def test_an_object_of_a_deleted_owner_of_the_same_name_is_waited_for() -> None:
    fake = cluster()
    before = fake.put_new(SERVICE, service("deleted"))
    with pytest.raises(PredecessorError, match="Service n/demo of the deleted InferenceModel"):
        await carry_out(fake, Cache(), "me", [Write(SERVICE, service())])
    assert fake.objects[SERVICE, KEY] == before


async def test_an_object_that_took_the_place_of_ours_is_not_touched() -> None:
    fake = cluster()
    before = fake.put_new(SERVICE, service("other"))
    with pytest.raises(ConflictError):
        await carry_out(fake, Cache(), "me", [Write(SERVICE, service(), "uid-of-ours")])
    assert fake.objects[SERVICE, KEY] == before


async def test_an_own_object_on_its_way_out_is_waited_for() -> None:
    fake = cluster()
    going = service()
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    fake.put_new(SERVICE, going)
    with pytest.raises(ConflictError, match="still being deleted"):
        await carry_out(fake, Cache(), "me", [Write(SERVICE, service())])


class _Refusing(FakeCluster):
    """Refuses every apply, as for a list that somebody else's entry makes invalid."""

    async def apply(self, kind: Any, manifest: Manifest) -> Manifest:
        raise InvalidError(f"{kind}: duplicate value")


async def test_what_cannot_be_mended_in_place_is_made_anew_if_it_holds_nothing() -> None:
    fake = _Refusing(lambda: "2026-01-01T00:00:00Z")
    live = fake.put_new(SERVICE, service())
    write = Write(SERVICE, service(), live["metadata"]["uid"])
    with pytest.raises(ConflictError, match="made anew"):
        await carry_out(fake, Cache(), "me", [write])
    assert (SERVICE, KEY) not in fake.objects
    claim = fake.put_new(CLAIM, service())
    with pytest.raises(InvalidError):
        await carry_out(fake, Cache(), "me", [Write(CLAIM, service(), claim["metadata"]["uid"])])
    assert (CLAIM, KEY) in fake.objects


class _Older(FakeCluster):
    """An API server that drops what it has switched off, as Kubernetes 1.33 does."""

    async def preview(self, kind: Any, manifest: Manifest) -> Manifest:
        answer = await super().preview(kind, manifest)
        pod = answer["spec"]["template"]["spec"]
        pod.pop("resourceClaims", None)
        for volume in pod.get("volumes", ()):
            if volume.pop("image", None):
                volume["emptyDir"] = {}  # As the real one fills it in.
        return answer


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        (
            {"resourceClaims": [{"name": "devices", "resourceClaimTemplateName": "gpus"}]},
            r"ignores resourceClaims.*Kubernetes 1\.34",
        ),
        (
            {"volumes": [{"name": "model", "image": {"reference": "r/m:1"}}]},
            r"ignores image volumes.*Kubernetes 1\.35",
        ),
    ],
)
async def test_what_the_server_would_drop_in_silence_is_not_made(pod: Any, words: str) -> None:
    wanted = service(template={"spec": pod})
    old = _Older(lambda: "2026-01-01T00:00:00Z")
    with pytest.raises(InvalidError, match=words):
        await carry_out(old, Cache(), "me", [Write(STATEFULSET, wanted)])
    assert not old.objects
    new = cluster()
    await carry_out(new, Cache(), "me", [Write(STATEFULSET, wanted)])
    assert (STATEFULSET, KEY) in new.objects


def pod(version: str = "1") -> Manifest:
    metadata = {"name": "demo", "namespace": "n", "uid": "uid-1", "resourceVersion": version}
    return {"metadata": metadata, "spec": {}, "status": {"phase": version}}


@pytest.mark.parametrize("moment", ["before", "after", "never"])
async def test_a_pod_counts_as_gone_from_the_moment_we_ask(moment: str) -> None:
    fake, cache = cluster(), Cache()
    fake.put_new(POD, pod())
    cache.put(POD, pod())

    def strike(call: str, when: str) -> None:
        if when == moment:
            raise UnavailableError(call)

    fake.checkpoint = strike
    if moment == "never":
        await remove(fake, cache, POD, pod())
    else:
        with pytest.raises(UnavailableError):
            await remove(fake, cache, POD, pod())
    assert is_deleting(cache.get(POD, KEY) or {})
    cache.put(POD, pod("2"))  # An event that is older than the deletion.
    assert is_deleting(cache.get(POD, KEY) or {})
    cache.replace(POD, Listing([pod("3")], "3"), None)  # The server says it is still there.
    assert not is_deleting(cache.get(POD, KEY) or {"metadata": {}})


async def test_removing_what_is_gone_is_fine() -> None:
    fake = cluster()
    await remove(fake, Cache(), POD, pod())
    with pytest.raises(NotFoundError):
        await fake.get(POD, KEY)
