"""kill -9 anything: clients get an error and not silence, and the next request works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2
import openai
import psutil
import pytest

from support.chain import kill_9, processes_of
from support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.chain import Chain

LONG: list[Any] = [{"role": "user", "content": "Tell me a story about a llama named Inti."}]


def client_of(chain: Chain) -> openai.OpenAI:
    return openai.OpenAI(base_url=chain.url, api_key="none", max_retries=0, timeout=60)


def ask(chain: Chain, name: str = "demo") -> str:
    """An answer, or nothing where the way is broken at the moment."""
    with client_of(chain) as client:
        try:
            reply = client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": "What is a pod?"}],
                temperature=0,
                max_tokens=64,
            )
        except openai.APIError:
            return ""
    return reply.choices[0].message.content or ""


def stream_and_break(chain: Chain, break_it: Callable[[], object]) -> None:
    """Read a long answer and break something at its sixth piece."""
    with client_of(chain) as client:
        stream = client.chat.completions.create(
            model="demo",
            messages=LONG,
            stream=True,
            max_tokens=1500,
            extra_body={"ignore_eos": True},
        )
        for number, _ in enumerate(stream):
            if number == 5:
                break_it()


def is_engine(process: psutil.Process) -> bool:
    try:
        return "engine" in process.cmdline()
    except psutil.Error:
        return False  # another child, that has just ended


def kill_all(processes: list[psutil.Process]) -> None:
    assert processes
    for process in processes:
        kill_9(process)


def restarted(chain: Chain, pod: dict[str, Any]) -> dict[str, Any]:
    """The status of the pod's container once the API tells of one restart more."""

    def probe() -> dict[str, Any]:
        again = chain.get("pod", pod["metadata"]["name"])
        assert again["metadata"]["uid"] == pod["metadata"]["uid"]
        status: dict[str, Any] = again["status"]["containerStatuses"][0]
        return status if status["restartCount"] != before else {}

    before = pod["status"]["containerStatuses"][0]["restartCount"]
    # The replica may answer before its node has told the API what it did.
    status = wait_for("the restart in the pod's status", probe)
    assert status["restartCount"] == before + 1
    return status


def answers_again(chain: Chain) -> None:
    said = wait_for("an answer after the failure", lambda: ask(chain), timeout=120, every=0.3)
    assert said.startswith("A pod is the smallest thing Kubernetes runs")


def test_a_killed_runtime_ends_the_stream_with_an_error_and_comes_back(chain: Chain) -> None:
    pod = chain.pods("demo")[0]
    servers = processes_of("terrace_runtime serve", pod["status"]["podIP"])
    with pytest.raises(openai.APIError):
        stream_and_break(chain, lambda: kill_all(servers))
    answers_again(chain)
    restarted(chain, pod)


def test_a_killed_engine_child_ends_the_stream_with_an_error_and_comes_back(chain: Chain) -> None:
    pod = chain.pods("demo")[0]
    server = processes_of("terrace_runtime serve", pod["status"]["podIP"])[0]
    engines = [one for one in server.children(recursive=True) if is_engine(one)]
    with pytest.raises(openai.APIError):
        stream_and_break(chain, lambda: kill_all(engines))
    answers_again(chain)
    assert restarted(chain, pod)["lastState"]["terminated"]["message"]


def test_a_killed_gateway_closes_the_stream_and_the_next_request_works(chain: Chain) -> None:
    gateways = processes_of("-m terrace.gateway", chain.program("gateway")["status"]["podIP"])
    with pytest.raises((openai.APIError, httpx2.HTTPError)):
        stream_and_break(chain, lambda: kill_all(gateways))
    answers_again(chain)


def test_after_a_killed_operator_the_next_one_does_what_was_asked_meanwhile(chain: Chain) -> None:
    uid = chain.pods("demo")[0]["metadata"]["uid"]
    kill_all(processes_of("-m terrace.controller", chain.program("operator")["status"]["podIP"]))
    chain.cluster.kubectl("scale", "im/demo", "--replicas=2")

    def ready() -> bool:
        return bool(chain.get("im", "demo").get("status", {}).get("readyReplicas") == 2)

    try:
        wait_for("two ready replicas", ready, timeout=120, every=0.5)
        assert uid in [p["metadata"]["uid"] for p in chain.pods("demo")]
    finally:
        chain.cluster.kubectl("scale", "im/demo", "--replicas=1")
    wait_for("one replica again", lambda: len(chain.pods("demo")) == 1, timeout=90)
