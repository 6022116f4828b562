"""What is wrong becomes a condition that names it, and no pod churns."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import openai
import pytest

from support.chain import ROOT, model
from support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.chain import Chain

CHAT = ROOT / "runtime_image/terrace_runtime/demo/chat.gguf"
SHA256 = hashlib.sha256(CHAT.read_bytes()).hexdigest()
FILL = f"""
set -e
cd "$TERRACE_POD_ROOT/data"
cp {CHAT} good.gguf
head -c 1000000 {CHAT} > truncated.gguf
echo '<html>not a model</html>' > page.gguf
"""


@pytest.fixture(scope="module")
def filled(chain: Chain) -> Iterator[Chain]:
    """A claim ``files`` with a good, a truncated and a foreign file in it."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "files", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "fill", "namespace": "default"},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "fill",
                    "image": "test/sh",
                    "args": ["-c", FILL],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }
            ],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "files"}}],
        },
    }
    chain.apply(claim, pod)
    chain.cluster.kubectl(
        "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/fill", "--timeout=120s",
        timeout_s=140,
    )  # fmt: skip
    yield chain
    chain.delete("pod", "fill")


@pytest.mark.parametrize(
    ("name", "uri", "source", "reason", "words"),
    [
        ("missing", "pvc://files/nothing.gguf", {}, "NotFound", "nothing.gguf"),
        ("truncated", "pvc://files/truncated.gguf", {}, "Truncated", "1000000"),
        ("page", "pvc://files/page.gguf", {}, "UnsupportedFormat", "GGUF"),
        ("checksum", "pvc://files/good.gguf", {"sha256": "0" * 64}, "ChecksumMismatch", SHA256),
        ("nodemo", "demo://nothing", {}, "NotFound", "nothing"),
        (
            "private",
            "https://127.0.0.1:9/model.gguf",
            {},
            "AddressRefused",
            "allowedNetworks",
        ),
    ],
)
def test_an_unusable_model_file_is_a_condition_and_no_pod(
    filled: Chain, name: str, uri: str, source: dict[str, Any], reason: str, words: str
) -> None:
    chain = filled
    chain.apply(model(name, uri, source=source))
    try:
        found = chain.wait_condition(name, "ModelCached", "False", reason)
        assert words in found["message"]
        assert found["observedGeneration"] == 1
        chain.wait_condition(name, "Stalled", "True")
        chain.wait_condition(name, "Ready", "False")
        assert chain.pods(name) == []
        jobs = chain.get("job", f"{name}-fetch")
        assert jobs["status"].get("failed", 0) <= 1
    finally:
        chain.delete("im", name)


def test_a_file_in_a_claim_is_served_in_place_with_its_checksum(filled: Chain) -> None:
    chain = filled
    chain.apply(model("inplace", "pvc://files/good.gguf", source={"sha256": SHA256}))
    try:
        chain.wait_condition("inplace", "Ready", "True")
        assert chain.get("im", "inplace")["status"]["model"]["digest"] == SHA256
        question = [{"role": "user", "content": "What is a node?"}]
        reply = chain.ask({"model": "inplace", "messages": question, "temperature": 0}).json()
        assert reply["choices"][0]["message"]["content"] == (
            "A node is one machine in the cluster, real or virtual, that runs pods."
        )
    finally:
        chain.delete("im", "inplace")


def test_a_model_too_large_says_how_many_bytes_are_missing(chain: Chain) -> None:
    # 255 conversations of 4,096 tokens at 1,280 bytes are small; a tight flavor makes it large.
    tight = {
        "apiVersion": "terrace.dev/v1alpha1",
        "kind": "InferencePool",
        "metadata": {"name": "tight", "namespace": "default"},
        "spec": {
            "flavors": [{"name": "cpu", "host": {"memory": "64Mi"}}],
            "modelCache": {"size": "1Gi"},
        },
    }
    large = model("large", context={"length": 4096, "parallel": 255})
    large["spec"]["poolRef"]["name"] = "tight"
    chain.apply(tight, large)
    try:
        found = chain.wait_condition("large", "Placed", "False", "NoNodeFits")
        assert "missing" in found["message"]
        assert chain.pods("large") == []
    finally:
        chain.delete("im", "large")
        chain.delete("ipool", "tight")


def test_a_context_beyond_the_models_own_is_refused_with_both_numbers(chain: Chain) -> None:
    chain.apply(model("long", context={"length": 8192}))
    try:
        found = chain.wait_condition("long", "Placed", "False", "ContextTooLong")
        message = found["message"].replace(",", "")
        assert "8192" in message
        assert "4096" in message
    finally:
        chain.delete("im", "long")


def test_a_missing_pool_is_a_condition_until_it_comes(chain: Chain) -> None:
    lonely = model("lonely")
    lonely["spec"]["poolRef"]["name"] = "later"
    chain.apply(lonely)
    pool = {
        "apiVersion": "terrace.dev/v1alpha1",
        "kind": "InferencePool",
        "metadata": {"name": "later", "namespace": "default"},
        "spec": {"flavors": [{"name": "cpu"}], "modelCache": {"size": "1Gi"}},
    }
    try:
        chain.wait_condition("lonely", "Placed", "False", "PoolNotFound")
        chain.apply(pool)
        chain.wait_condition("lonely", "Ready", "True", timeout=120)
        chain.cluster.kubectl("delete", "ipool", "later")
        chain.wait_condition("lonely", "Placed", "False", "PoolNotFound")
        assert chain.condition("lonely", "Available")["status"] == "True"
    finally:
        chain.delete("im", "lonely")
        chain.delete("ipool", "later")


def test_of_two_models_with_one_name_the_older_serves_it(chain: Chain) -> None:
    chain.apply(model("second", servedNames=["demo", "other-name"]))
    try:
        found = chain.wait_condition("second", "Stalled", "True", "NameConflict")
        assert "default/demo" in found["message"]
        wait_for(
            "the name that is free",
            lambda: chain.get("im", "second")["status"].get("servedNames") == ["other-name"],
        )
    finally:
        chain.delete("im", "second")


def test_a_model_without_replicas_gets_503_with_retry_after(chain: Chain) -> None:
    chain.apply(model("asleep", replicas=0))
    try:
        chain.wait_condition("asleep", "Placed", "True")

        def refused() -> openai.APIStatusError | None:
            with pytest.raises(openai.APIStatusError) as caught:
                say_hi(chain, "asleep")
            return caught.value if caught.value.status_code == 503 else None

        error = wait_for("503", refused)
        assert error is not None
        assert 0 < int(error.response.headers["retry-after"]) <= 120
    finally:
        chain.delete("im", "asleep")


def test_an_unknown_model_gets_404_in_the_openai_shape(chain: Chain) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        say_hi(chain, "nobody")
    assert caught.value.body["code"] == "model_not_found"  # type: ignore[index]  # a JSON object
    assert caught.value.param == "model"


def say_hi(chain: Chain, name: str) -> None:
    with openai.OpenAI(base_url=chain.url, api_key="none", max_retries=0) as client:
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hi"}])
