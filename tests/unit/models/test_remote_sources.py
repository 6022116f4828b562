"""Models from a hub, an S3 store and an OCI registry, with honest and with faulty servers."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from support.fetching import LOOPBACK, failure, get, leftovers, sha, stored
from support.file_server import status
from support.origins import COMMIT, Cdn, Hub, Registry, S3Store, cut
from terrace_runtime.contract import FetchOutcome, FetchSpec
from terrace_runtime.models.cache import CacheFolder, content_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from support.origins import Origin

GGUF = "application/vnd.docker.ai.gguf.v3"
TOKEN = "hf_very-secret-token"


def secret(pod: Path, values: Mapping[str, str]) -> str:
    """A mounted secret; returns its folder as the container sees it."""
    folder = pod / "secret"
    folder.mkdir(exist_ok=True)
    for key, value in values.items():
        (folder / key).write_text(value + "\n")
    return "/secret"


async def fetched(server: Origin, uri: str, **more: Any) -> FetchOutcome:
    endpoint = f"{uri.partition(':')[0]}_endpoint"
    spec = {"uri": uri, "allowed_networks": LOOPBACK, endpoint: server.url}
    return await get(FetchSpec.model_validate(spec | more))


# The hub ------------------------------------------------------------------------------------------


async def test_a_file_of_the_hub_is_fetched_at_a_pinned_commit(pod: Path, content: bytes) -> None:
    async with Cdn().running() as cdn, Hub(files={"m.gguf": content}, cdn=cdn).running() as hub:
        outcome = await fetched(hub, "hf://owner/repo/m.gguf")
        assert stored(pod, outcome) == content
        assert outcome.path == f"/models/blobs/{sha(content)}.gguf"
        assert hub.asked(f"/owner/repo/resolve/{COMMIT}/m.gguf")
        before = len(hub.requests)
        assert await fetched(hub, "hf://owner/repo/m.gguf") == outcome
        assert len(hub.requests) == before


async def test_a_revision_and_a_tag_choose_the_file(pod: Path, content: bytes) -> None:
    files = {"a-Q8_0.gguf": content + b"other", "q4/a-Q4_K_M.gguf": content, "mmproj.gguf": b"x"}
    async with Hub(files=files, revision="refs/pr/1").running() as hub:
        outcome = await fetched(hub, "hf://owner/repo@refs%2Fpr%2F1:q4_k_m")
        assert stored(pod, outcome) == content
        missing = failure(await fetched(hub, "hf://owner/repo@other:q4_k_m"))
        assert (missing.reason, missing.permanent) == ("NotFound", True)
        assert "no such revision" in missing.message


async def test_a_token_goes_to_the_hub_and_not_to_its_cdn(pod: Path, content: bytes) -> None:
    where = secret(pod, {"token": TOKEN})
    async with (
        Cdn().running() as cdn,
        Hub(files={"m.gguf": content}, cdn=cdn, token=TOKEN).running() as hub,
    ):
        refused = failure(await fetched(hub, "hf://owner/repo/m.gguf"))
        assert (refused.reason, "needs secretRef" in refused.message) == ("Unauthorized", True)
        outcome = await fetched(hub, "hf://owner/repo/m.gguf", secret_dir=where)
        assert stored(pod, outcome) == content
        assert cdn.requests
        assert all("Authorization" not in request.headers for request in cdn.requests)


async def test_a_repository_without_gguf_says_what_is_there_and_how_to_convert(pod: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"x", "onnx/model.onnx": b"x"}
    async with Hub(files=files).running() as hub:
        for uri in ("hf://owner/repo", "hf://owner/repo/model.safetensors", "hf://owner/repo/x"):
            found = failure(await fetched(hub, uri))
            assert (found.reason, found.permanent) == ("UnsupportedFormat", True)
            assert "safetensors" in found.message
            assert "model.safetensors" in found.message
            assert "convert_hf_to_gguf.py" in found.message


async def test_several_candidates_are_listed(pod: Path) -> None:
    async with Hub(files={"a.gguf": b"", "b.gguf": b""}).running() as hub:
        for uri in ("hf://owner/repo", "hf://owner/repo:Q4_K_M", "hf://owner/repo/c.gguf"):
            found = failure(await fetched(hub, uri))
            assert (found.reason, found.permanent) == ("NotFound", True)
            assert "a.gguf, b.gguf" in found.message


async def test_bytes_that_are_not_what_the_hub_says_are_refused(pod: Path, content: bytes) -> None:
    async with Hub(files={"m.gguf": content}, lies={"m.gguf": "0" * 64}).running() as hub:
        found = failure(await fetched(hub, "hf://owner/repo/m.gguf"))
        assert found.reason == "ChecksumMismatch"
        assert leftovers(pod) == []
        assert list((pod / "models" / "blobs").iterdir()) == []


async def test_a_checksum_at_odds_with_the_hub_costs_no_download(pod: Path, content: bytes) -> None:
    async with Hub(files={"m.gguf": content}).running() as hub:
        found = failure(await fetched(hub, "hf://owner/repo", sha256="0" * 64))
        assert (found.reason, found.permanent) == ("ChecksumMismatch", True)
        assert sha(content) in found.message
        assert hub.asked("/resolve/") == []


async def test_a_hub_that_talks_nonsense_is_no_hub(pod: Path) -> None:
    async with Cdn(files={"api/models/owner/repo/revision/main": b"<html>"}).running() as hub:
        found = failure(await fetched(hub, "hf://owner/repo"))
        assert (found.reason, found.permanent) == ("DownloadFailed", True)
        assert "does not answer as the hub does" in found.message


async def test_a_hub_that_names_a_path_out_of_its_repository_is_refused(pod: Path) -> None:
    async with Hub(files={"../../../x.gguf": b"GGUF"}).running() as hub:
        assert "names a file" in failure(await fetched(hub, "hf://owner/repo")).message


async def test_a_busy_hub_is_asked_again(pod: Path, content: bytes) -> None:
    async with Hub(files={"m.gguf": content}).running() as hub:
        hub.faults = [status(429, Retry_After="0"), status(503)]
        assert stored(pod, await fetched(hub, "hf://owner/repo")) == content


async def test_the_hub_redirects_to_a_private_address_in_vain(pod: Path, content: bytes) -> None:
    private = Cdn(url="http://10.1.2.3:1")
    async with Hub(files={"m.gguf": content}, cdn=private).running() as hub:
        assert failure(await fetched(hub, "hf://owner/repo")).reason == "AddressRefused"


async def test_two_uris_of_one_content_download_once(pod: Path, content: bytes) -> None:
    files = {"a.gguf": content, "b.gguf": content}
    async with Hub(files=files).running() as hub:
        uris = ("hf://owner/repo/a.gguf", "hf://owner/repo/b.gguf", "hf://owner/repo@main/a.gguf")
        outcomes = await asyncio.gather(*(fetched(hub, uri) for uri in uris))
        assert len({outcome.path for outcome in outcomes}) == 1
        assert len(hub.asked("/resolve/")) == 1
        assert stored(pod, outcomes[0]) == content


async def test_a_cut_download_of_the_hub_goes_on(pod: Path, content: bytes) -> None:
    async with Cdn().running() as cdn, Hub(files={"m.gguf": content}, cdn=cdn).running() as hub:
        cdn.faults = [cut(content, 1000)]
        assert stored(pod, await fetched(hub, "hf://owner/repo")) == content
        assert [r.headers.get("Range") for r in cdn.requests] == [None, "bytes=1000-"]


# S3 -----------------------------------------------------------------------------------------------

KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "s3-very-secret"}


async def test_an_object_with_an_awkward_key_is_fetched_signed(pod: Path, content: bytes) -> None:
    key = "bucket/models/a b+c=ü.gguf"
    async with S3Store(
        objects={key: content}, keys={"AKID": KEYS["AWS_SECRET_ACCESS_KEY"]}
    ).running() as store:
        store.faults = [cut(content, 500)]
        uri = "s3://bucket/models/a%20b+c=%C3%BC.gguf"
        outcome = await fetched(store, uri, secret_dir=secret(pod, KEYS))
        assert stored(pod, outcome) == content
        assert store.requests[-1].headers["Range"] == "bytes=500-"
        refused = failure(await fetched(store, uri + "?"))
        assert (refused.reason, "secretRef" in refused.message) == ("Unauthorized", True)


async def test_a_wrong_key_is_refused_and_a_session_token_is_sent(
    pod: Path, content: bytes
) -> None:
    where = secret(pod, KEYS | {"AWS_SESSION_TOKEN": "session-token"})
    store = S3Store(
        objects={"bucket/m.gguf": content},
        keys={"AKID": KEYS["AWS_SECRET_ACCESS_KEY"]},
        session_token="session-token",
    )
    async with store.running():
        assert stored(pod, await fetched(store, "s3://bucket/m.gguf", secret_dir=where)) == content
        store.keys = {"AKID": "changed"}
        assert (
            failure(await fetched(store, "s3://bucket/n.gguf", secret_dir=where)).reason
            == "Unauthorized"
        )


async def test_a_bucket_of_another_region_is_found(pod: Path, content: bytes) -> None:
    store = S3Store(
        objects={"bucket/m.gguf": content},
        keys={"AKID": KEYS["AWS_SECRET_ACCESS_KEY"]},
        region="eu-central-1",
    )
    async with store.running():
        outcome = await fetched(store, "s3://bucket/m.gguf", secret_dir=secret(pod, KEYS))
        assert stored(pod, outcome) == content


async def test_a_public_bucket_needs_no_key(pod: Path, content: bytes) -> None:
    async with S3Store(objects={"bucket/m.gguf": content}).running() as store:
        assert stored(pod, await fetched(store, "s3://bucket/m.gguf")) == content
        assert "Authorization" not in store.requests[0].headers
        assert failure(await fetched(store, "s3://bucket/none.gguf")).reason == "NotFound"


async def test_a_secret_without_the_keys_of_s3_is_named(pod: Path) -> None:
    async with S3Store().running() as store:
        where = secret(pod, {"token": TOKEN})
        found = failure(await fetched(store, "s3://bucket/m.gguf", secret_dir=where))
        assert (found.reason, "AWS_ACCESS_KEY_ID" in found.message) == ("Unauthorized", True)
        assert store.requests == []


async def test_the_same_content_of_another_source_spoils_no_entry(
    pod: Path, content: bytes
) -> None:
    objects = {"bucket/a.gguf": content, "bucket/b.gguf": content}
    async with S3Store(objects=objects).running() as store:
        first = await fetched(store, "s3://bucket/a.gguf")
        assert await fetched(store, "s3://bucket/b.gguf") == first
        before = len(store.requests)
        assert await fetched(store, "s3://bucket/a.gguf") == first
        assert len(store.requests) == before


async def test_a_file_is_committed_when_nobody_deletes_it(pod: Path, content: bytes) -> None:
    async with S3Store(objects={"bucket/a.gguf": content}).running() as store:
        with CacheFolder().try_lock(content_key(sha(content))) as is_ours:
            assert is_ours
            fetching = asyncio.create_task(fetched(store, "s3://bucket/a.gguf"))
            done, _ = await asyncio.wait([fetching], timeout=0.5)
            assert not done
        assert stored(pod, await fetching) == content


# OCI ----------------------------------------------------------------------------------------------


async def test_an_artifact_is_pulled_with_an_anonymous_token(pod: Path, content: bytes) -> None:
    async with Cdn().running() as cdn, Registry(cdn=cdn).running() as registry:
        registry.push("v1", [("text/plain", "LICENSE", b"free"), (GGUF, "", content)])
        outcome = await fetched(registry, "oci://registry.example/ai/model:v1")
        assert stored(pod, outcome) == content
        assert all("Authorization" not in request.headers for request in cdn.requests)


@pytest.mark.parametrize("index", [True, False])
async def test_a_digest_pins_the_artifact(pod: Path, content: bytes, *, index: bool) -> None:
    async with Registry().running() as registry:
        digest = registry.push("v1", [("application/octet-stream", "m.gguf", content)], index=index)
        outcome = await fetched(registry, f"oci://registry.example/ai/model:v1@{digest}")
        assert stored(pod, outcome) == content
        registry.manifests[digest] += b" "
        bad = failure(await fetched(registry, f"oci://registry.example/ai/model@{digest}"))
        assert (bad.reason, bad.permanent) == ("ChecksumMismatch", True)


@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
@pytest.mark.parametrize("kind", ["password", "dockerconfig"])
async def test_a_login_is_used(pod: Path, content: bytes, scheme: str, kind: str) -> None:
    login = ("me", "registry-very-secret")
    values = {"username": login[0], "password": login[1]}
    if kind == "dockerconfig":
        auth = base64.b64encode(":".join(login).encode()).decode()
        values = {".dockerconfigjson": json.dumps({"auths": {"registry.example": {"auth": auth}}})}
    async with Registry(login=login, scheme=scheme).running() as registry:
        registry.push("v1", [(GGUF, "", content)])
        uri = "oci://registry.example/ai/model:v1"
        assert failure(await fetched(registry, uri)).reason == "Unauthorized"
        outcome = await fetched(registry, uri, secret_dir=secret(pod, values))
        assert stored(pod, outcome) == content


async def test_an_expired_token_is_renewed_in_the_middle(pod: Path, content: bytes) -> None:
    async with Registry().running() as registry:
        registry.push("v1", [(GGUF, "", content)])

        async def expire(request: Any) -> Any:
            registry.tokens = {"spent"}
            return await cut(content, 1000)(request)

        registry.faults = [registry.answer, registry.answer, registry.answer, expire]
        assert stored(pod, await fetched(registry, "oci://r.example/ai/model:v1")) == content
        assert len(registry.asked("/token")) == 2


async def test_a_password_never_goes_to_a_plain_token_service_elsewhere(pod: Path) -> None:
    where = secret(pod, {"username": "me", "password": "registry-very-secret"})
    async with (
        Cdn().running() as thief,
        Registry(login=("me", "x"), token_host=thief.url).running() as registry,
    ):
        found = failure(await fetched(registry, "oci://r.example/ai/model", secret_dir=where))
        assert (found.reason, "plain http" in found.message) == ("DownloadFailed", True)
        assert thief.requests == []


async def test_an_artifact_without_a_model_says_what_it_holds(pod: Path) -> None:
    async with Registry().running() as registry:
        registry.push("v1", [("application/vnd.oci.image.layer.v1.tar+gzip", "", b"x")])
        found = failure(await fetched(registry, "oci://r.example/ai/model:v1"))
        assert (found.reason, found.permanent) == ("UnsupportedFormat", True)
        assert "tar+gzip" in found.message
        assert "oras push" in found.message


async def test_an_artifact_of_several_models_is_refused(pod: Path, content: bytes) -> None:
    async with Registry().running() as registry:
        registry.push("v1", [(GGUF, "a.gguf", content), (GGUF, "b.gguf", content + b"x")])
        found = failure(await fetched(registry, "oci://r.example/ai/model:v1"))
        assert (found.reason, "a.gguf, b.gguf" in found.message) == ("NotFound", True)


async def test_a_blob_that_is_not_its_digest_is_refused(pod: Path, content: bytes) -> None:
    async with Registry().running() as registry:
        registry.push("v1", [(GGUF, "", content)])
        registry.blobs = dict.fromkeys(registry.blobs, content[:-1] + b"x")
        found = failure(await fetched(registry, "oci://r.example/ai/model:v1"))
        assert found.reason == "ChecksumMismatch"
        assert leftovers(pod) == []
