"""A change that needs new replicas replaces them one by one while requests go on."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, Self

import openai

from support.chain import model
from support.waiting import wait_for

if TYPE_CHECKING:
    from support.chain import Chain

POD = [{"role": "user", "content": "What is a pod?"}]


class Traffic:
    """Clients that ask one question after the other and remember what went wrong."""

    def __init__(self, url: str, name: str, clients: int) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._name = name
        self._client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        self._client.close()

    def _ask(self) -> None:
        messages: list[Any] = POD
        while not self._stop.is_set():
            try:
                stream = self._client.chat.completions.create(
                    model=self._name, messages=messages, temperature=0, max_tokens=64, stream=True
                )
                text = "".join(c.choices[0].delta.content or "" for c in stream)
                assert text.startswith("A pod is the smallest thing Kubernetes runs"), text
                self.answers += 1
            except (openai.APIError, AssertionError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")


def test_a_rollout_of_two_replicas_fails_no_request(chain: Chain) -> None:
    chain.apply(model("rolling", replicas=2))

    def ready() -> list[dict[str, Any]]:
        status = chain.get("im", "rolling").get("status", {})
        pods = chain.pods("rolling")
        return pods if status.get("readyReplicas") == 2 and len(pods) == 2 else []

    try:
        before = {p["metadata"]["uid"] for p in wait_for("two replicas", ready, timeout=90)}
        chain.ask({"model": "rolling", "messages": POD, "max_tokens": 1})
        with Traffic(chain.url, "rolling", clients=3) as traffic:
            wait_for("some answers", lambda: traffic.answers > 5)
            patch = json.dumps({"spec": {"limits": {"maxTokens": 200}}})
            chain.cluster.kubectl("patch", "im", "rolling", "--type=merge", "-p", patch)

            def replaced() -> bool:
                pods = ready()
                return bool(pods) and not before & {p["metadata"]["uid"] for p in pods}

            wait_for("two new replicas", replaced, timeout=110)
            seen = traffic.answers
            wait_for("answers of the new ones", lambda: traffic.answers > seen + 5)
        assert not traffic.failures, (traffic.answers, traffic.failures[:5])
    finally:
        chain.delete("im", "rolling")


def test_a_change_of_replicas_restarts_nothing(chain: Chain) -> None:
    uid = chain.pods("demo")[0]["metadata"]["uid"]
    chain.cluster.kubectl("scale", "im/demo", "--replicas=2")
    try:
        wait_for("a second replica", lambda: len(chain.pods("demo")) == 2)
        chain.wait_condition("demo", "Ready", "True")
    finally:
        chain.cluster.kubectl("scale", "im/demo", "--replicas=1")
    wait_for("one replica", lambda: len(chain.pods("demo")) == 1)
    assert chain.pods("demo")[0]["metadata"]["uid"] == uid


def test_a_new_name_is_served_at_once_and_restarts_nothing(chain: Chain) -> None:
    chain.apply(model("named", servedNames=["before"]))
    try:
        chain.wait_condition("named", "Ready", "True")
        uid = chain.pods("named")[0]["metadata"]["uid"]
        patch = json.dumps({"spec": {"servedNames": ["after"]}})
        chain.cluster.kubectl("patch", "im", "named", "--type=merge", "-p", patch)
        with openai.OpenAI(base_url=chain.url, api_key="none", max_retries=0) as client:

            def renamed() -> bool:
                names = [each.id for each in client.models.list()]
                return "after" in names and "before" not in names

            wait_for("the new name", renamed)
            messages: list[Any] = POD
            reply = client.chat.completions.create(model="after", messages=messages, max_tokens=4)
            assert reply.choices
        wait_for(
            "the change to be seen",
            lambda: chain.get("im", "named")["status"]["observedGeneration"] == 2,
        )
        chain.wait_condition("named", "Reconciling", "False")
        assert [p["metadata"]["uid"] for p in chain.pods("named")] == [uid]
    finally:
        chain.delete("im", "named")
